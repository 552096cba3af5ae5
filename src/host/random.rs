//! Numbers nobody can guess, from the kernel.

use std::fs::File;
use std::io::{self, Read};

use crate::net::Mac;

/// A MAC address for a bridge: unicast, locally administered, different on every node.
///
/// # Errors
/// When /dev/urandom cannot be read.
pub fn mac() -> io::Result<Mac> {
    let mut bytes = [0; 6];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(Mac::from_bytes(bytes).made_local())
}
