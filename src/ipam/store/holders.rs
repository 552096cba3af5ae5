//! Who holds what: for a release, and for messages.

use std::net::IpAddr;
use std::time::SystemTime;

use crate::ipam::lease_file::Holder;
use crate::ipam::store::{Store, address_of};

/// The addresses that an attachment was found to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) siblings: bool,
    pub(super) litter: bool,
}

impl Held {
    /// Exactly these.
    pub(in crate::ipam) fn exactly(addresses: Vec<IpAddr>) -> Held {
        Held {
            addresses,
            siblings: false,
            litter: false,
        }
    }

    /// The addresses, in no order.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Whether another interface of the same container has an address on this network.
    pub fn has_siblings(&self) -> bool {
        self.siblings
    }

    /// Whether there is nothing to release.
    pub(in crate::ipam) fn is_empty(&self) -> bool {
        self.addresses.is_empty() && !self.litter
    }
}

impl Store {
    /// Who has this address.
    pub fn holder(&self, address: IpAddr) -> Option<Holder> {
        Holder::read(&self.path(&address.to_string()), address)
    }

    /// The oldest leases among those wanted, oldest first.
    pub fn oldest(&self, count: usize, is_wanted: impl Fn(IpAddr) -> bool) -> Vec<Holder> {
        let mut leases: Vec<(SystemTime, IpAddr)> = Vec::new();
        for entry in self.entries().into_iter().flatten() {
            let address = address_of(&entry).filter(|address| is_wanted(*address));
            let since = entry.metadata().and_then(|file| file.modified());
            leases.extend(since.ok().zip(address));
        }
        leases.sort();
        let holders = leases
            .iter()
            .filter_map(|(_, address)| self.holder(*address));
        holders.take(count).collect()
    }
}
