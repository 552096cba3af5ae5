//! The CNI protocol: what comes in by the environment and stdin, what goes out on stdout.
//!
//! [`request`] reads the environment, [`conf`] the configuration, [`shape`] gives typed access to its
//! JSON, [`result`] writes and reads results in the shape of every version. Knows no plugin.

pub mod args;
mod chain;
pub mod conf;
pub mod request;
pub mod result;
pub mod shape;
mod valid;
mod version;

pub use valid::ValidAttachments;
pub use version::{Schema, Version};
