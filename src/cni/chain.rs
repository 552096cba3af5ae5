//! Combines the results of chained plugins.

use crate::cni::result::{AddResult, Dns, IpConfig};

impl AddResult {
    /// Appends the result of the previous plugins (CNI spec 1.1, section 5, "Add Success"). The own items come first:
    /// chained Go plugins take the first interface for the bridge and map host ports to the first address, and their
    /// bridge drops prevResult. BuildKit and Nomad call loopback before bridge.
    pub fn followed_by(mut self, previous: AddResult) -> AddResult {
        let shift = self.interfaces.len();
        self.interfaces.extend(previous.interfaces);
        self.ips.extend(previous.ips.into_iter().map(|ip| IpConfig {
            interface: ip.interface.map(|index| index + shift),
            ..ip
        }));
        self.routes.extend(previous.routes);
        self.dns.extend(previous.dns);
        self
    }
}

impl Dns {
    /// Appends without duplicates; an existing domain is kept.
    fn extend(&mut self, more: Dns) {
        let append = |list: &mut Vec<String>, mut more: Vec<String>| {
            more.retain(|value| !list.contains(value));
            list.extend(more);
        };
        append(&mut self.nameservers, more.nameservers);
        append(&mut self.search, more.search);
        append(&mut self.options, more.options);
        if self.domain.is_empty() {
            self.domain = more.domain;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::result::Interface;

    fn result(names: &[&str], interface: Option<usize>, servers: &[&str]) -> AddResult {
        let named = |name: &&str| Interface {
            name: (*name).to_owned(),
            ..Interface::default()
        };
        AddResult {
            interfaces: names.iter().map(named).collect(),
            ips: vec![IpConfig {
                interface,
                address: "10.1.0.2/24".parse().unwrap(),
                gateway: None,
            }],
            dns: Dns {
                nameservers: servers.iter().map(ToString::to_string).collect(),
                domain: servers[0].to_owned(),
                ..Dns::default()
            },
            ..AddResult::default()
        }
    }

    #[test]
    fn previous_entries_come_last_and_their_interface_indices_are_adjusted() {
        let previous = result(&["p0", "p1"], Some(1), &["b", "c"]);
        let both = result(&["x", "y"], None, &["a", "b"]).followed_by(previous.clone());
        let names: Vec<&str> = both
            .interfaces
            .iter()
            .map(|interface| interface.name.as_str())
            .collect();
        assert_eq!(names, ["x", "y", "p0", "p1"]);
        assert_eq!(
            (both.ips[0].interface, both.ips[1].interface),
            (None, Some(3))
        );
        assert_eq!(both.dns.nameservers, ["a", "b", "c"]);
        assert_eq!(both.dns.domain, "a");
        assert_eq!(AddResult::default().followed_by(previous.clone()), previous);
    }
}
