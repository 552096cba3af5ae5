//! The CNI protocol: what comes in by the environment and stdin, what goes out on stdout.
//!
//! [`environment`] reads the environment, [`conf`] the configuration, [`json`] gives typed access to its
//! JSON, [`result`] writes and reads results in the json of every version. Knows no plugin.

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
