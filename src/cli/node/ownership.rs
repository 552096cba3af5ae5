//! Whether the owners of entries in packet filters still exist.

use crate::cli::node::Node;
use crate::cni::ValidAttachments;
use crate::ipam::{LeaseFile, Store};
use crate::netfilter::portmap::inventory::MappedPort;

impl Node {
    /// Whether the leases of all networks of this name list all attachments.
    pub fn has_leases(&self, name: &str) -> bool {
        let with_leases = self
            .networks_named(name)
            .filter(|network| network.configured.host_local.is_some());
        match self.lists_named(name) {
            0 => self.orphaned_leases_of(name).next().is_some(),
            count => with_leases.count() >= count,
        }
    }

    /// All attachments to networks of this name that may still exist.
    pub fn valid_attachments(&self, name: &str) -> ValidAttachments {
        let pods = self.networks_named(name).flat_map(|it| &it.pods);
        let cached = self.cache.iter().filter(|it| it.network.as_str() == name);
        let orphaned = self.orphaned_leases_of(name).flat_map(|(_, leases)| leases);
        pods.map(|pod| pod.attachment.clone())
            .chain(cached.map(|cached| cached.attachment.clone()))
            .chain(orphaned.filter_map(LeaseFile::attachment))
            .collect()
    }

    fn orphaned_leases_of<'n>(
        &'n self,
        name: &'n str,
    ) -> impl Iterator<Item = &'n (Store, Vec<LeaseFile>)> {
        let leases = self.orphaned_leases.iter();
        leases.filter(move |(store, _)| store.directory().ends_with(name))
    }

    /// Whether the container of a mapped port no longer exists. Unless leases list all attachments of its network, its
    /// address decides.
    pub fn is_left_over(&self, port: &MappedPort) -> bool {
        let names: Vec<&str> = match port.mapped.network.as_str() {
            "" => self.lists.iter().map(|(list, _)| &*list.name).collect(),
            name => vec![name],
        };
        let may_exist = names.iter().any(|name| {
            let valid = self.valid_attachments(name);
            let network = name.parse();
            network.is_ok_and(|network| valid.all().any(|it| port.is_of(&network, &it)))
        });
        !may_exist
            && (self.has_leases(&port.mapped.network) || !self.may_be_in_use(port.mapped.address))
    }
}
