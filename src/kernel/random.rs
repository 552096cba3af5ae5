//! Random numbers from the kernel.

use std::fs::File;
use std::io::{self, Read};

use crate::net::Mac;

/// A random MAC address: unicast, locally administered.
///
/// # Errors
/// When /dev/urandom cannot be read.
pub fn mac() -> io::Result<Mac> {
    bytes().map(|bytes| Mac::from_bytes(bytes).to_locally_administered())
}

/// A number for the name of a temporary file.
///
/// # Errors
/// When /dev/urandom cannot be read.
pub fn number() -> io::Result<u64> {
    bytes().map(u64::from_ne_bytes)
}

/// # Errors
/// When /dev/urandom cannot be read.
pub fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}
