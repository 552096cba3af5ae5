//! Who holds what, for messages.

use std::net::IpAddr;
use std::time::SystemTime;

use crate::ipam::lease_file::Holder;
use crate::ipam::store::{Store, address_of};

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
