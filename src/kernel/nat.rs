//! Network address translation, of whichever part of the kernel.

/// Which port a translated connection gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PortAllocation {
    /// Its own, unless that is taken.
    #[default]
    Preserve,
    /// A random one, always.
    Random,
}
