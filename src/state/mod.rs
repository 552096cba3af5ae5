//! What exists on this host, whoever made it, as far as several plugins and commands need to know.

mod live;
mod veths;

pub use live::LiveAttachments;
pub use veths::{Veth, veths};
