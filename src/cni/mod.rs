//! The CNI protocol: environment and configuration in, results out. Knows no plugin.
//!
//! [`environment`] parses the environment, [`conf`] the configuration; [`json`] gives typed access to JSON; [`result`]
//! encodes and decodes results in every version.

pub mod args;
mod chain;
pub mod conf;
pub mod environment;
pub mod json;
pub mod names;
pub mod request;
pub mod result;
mod valid_attachments;
mod version;

pub use valid_attachments::ValidAttachments;
pub use version::{Schema, Version};
