//! gangplank: container networking in one small binary.
pub mod cni;
mod error;
pub mod host;
pub mod ipam;
pub mod net;
pub use error::{Code, Error, Failures};
