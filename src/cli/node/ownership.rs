//! Whether the owners of entries in packet filters still exist.

use crate::cli::node::Node;
use crate::cni::ValidAttachments;
use crate::ipam::LeaseFile;
use crate::netfilter::portmap::inventory::MappedPort;

impl Node {
    /// Whether the leases of all networks of this name list all attachments.
    pub fn has_leases(&self, name: &str) -> bool {
        let with_leases = self
            .networks_named(name)
            .filter(|network| network.configured.host_local.is_some());
        let count = with_leases.count() + self.other_leases_of(name).count();
        count >= self.lists_named(name).max(1)
    }

    /// All attachments to networks of this name that may still exist.
    pub fn valid_attachments(&self, name: &str) -> ValidAttachments {
        let pods = self.networks_named(name).flat_map(|it| &it.pods);
        let cached = self.cache.iter().filter(|it| it.network.as_str() == name);
        let others = self.other_leases_of(name).flatten();
        pods.map(|pod| pod.attachment.clone())
            .chain(cached.map(|cached| cached.attachment.clone()))
            .chain(others.filter_map(LeaseFile::attachment))
            .collect()
    }

    fn other_leases_of(&self, name: &str) -> impl Iterator<Item = &Vec<LeaseFile>> {
        let leases = self.other_leases.iter();
        let named = leases.filter(move |(store, _)| store.network().as_str() == name);
        named.map(|(_, leases)| leases)
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
