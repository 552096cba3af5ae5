//! The ports of the host that are mapped to containers.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use crate::cli::node::{Node, Pod};
use crate::cli::status::{NetworkStatus, short_id};
use crate::cli::style::{Style, Tone, table};
use crate::cni::names::NetworkName;
use crate::netfilter::portmap::inventory::MappedPort;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortStatus {
    protocol: &'static str,
    /// `None` for all addresses of the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    host_address: Option<IpAddr>,
    host_port: u16,
    container_address: IpAddr,
    container_port: u16,
    backend: &'static str,
    /// `HOSTIP:PORT/PROTOCOL`
    #[serde(skip)]
    host: String,
}

/// A port that is mapped to no known pod.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OtherPortStatus {
    #[serde(flatten)]
    port: PortStatus,
    /// As far as the entry names it.
    container: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    /// Whether the container no longer exists.
    pub left_over: bool,
}

/// The mapped ports that have not been taken yet.
pub struct Ports<'n> {
    node: &'n Node,
    left: Vec<&'n MappedPort>,
}

impl<'n> Ports<'n> {
    pub fn of(node: &'n Node) -> Ports<'n> {
        let left = node.mapped_ports.iter().collect();
        Ports { node, left }
    }

    /// Takes the ports of a pod.
    pub fn take_of(&mut self, network: &NetworkName, pod: &Pod) -> Vec<PortStatus> {
        // Rules of the Go plugin in nftables do not name the network.
        let has_address = |port: &MappedPort| {
            let mut addresses = pod.addresses.iter();
            !port.is_go_rule() || addresses.any(|it| it.address() == port.mapped.address)
        };
        let is_own =
            |port: &mut &MappedPort| port.is_of(network, &pod.attachment) && has_address(port);
        let own = self.left.extract_if(.., is_own);
        own.map(PortStatus::of).collect()
    }

    /// Takes the other ports of the networks of this name.
    pub fn take_others(&mut self, name: &str) -> Vec<OtherPortStatus> {
        let node = self.node;
        let own = self.left.extract_if(.., |port| port.mapped.network == name);
        own.map(|port| OtherPortStatus {
            port: PortStatus::of(port),
            container: port.mapped.container.clone(),
            pod: pod_of(node, port),
            left_over: node.is_left_over(port),
        })
        .collect()
    }

    /// The network of a port that has not been taken; empty if unknown.
    pub fn next_network(&self) -> Option<String> {
        Some(self.left.first()?.mapped.network.clone())
    }

    /// The configuration of a network; empty if there is none.
    pub fn file_of(&self, name: &str) -> String {
        let mut lists = self.node.lists.iter();
        let found = lists.find(|(list, _)| list.name == name);
        found.map_or(String::new(), |(_, file)| file.display().to_string())
    }
}

/// The name of a pod on a network without a bridge, which only a cached result has.
fn pod_of(node: &Node, port: &MappedPort) -> Option<String> {
    let mut cached = node.cache.iter();
    let cached = cached.find(|it| port.is_of(&it.network, &it.attachment));
    cached?.pod.clone()
}

impl PortStatus {
    fn of(port: &MappedPort) -> PortStatus {
        let mapping = &port.mapped.mapping;
        PortStatus {
            protocol: mapping.protocol.name(),
            host_address: mapping.host_address(),
            host_port: mapping.host_port.get(),
            container_address: port.mapped.address,
            container_port: mapping.container_port.get(),
            backend: port.backend().name(),
            host: mapping.to_string(),
        }
    }

    fn row(&self, owner: String) -> [String; 4] {
        let container = SocketAddr::new(self.container_address, self.container_port);
        let backend = self.backend.to_owned();
        [self.host.clone(), container.to_string(), backend, owner]
    }
}

/// Empty if no port is mapped.
pub fn port_table(network: &NetworkStatus, style: Style) -> String {
    let titles = ["HOST PORT", "CONTAINER PORT", "BACKEND", "POD"];
    let mut rows = vec![titles.map(str::to_owned)];
    for pod in &network.pods {
        let owner = pod.name.clone();
        let owner = owner.unwrap_or_else(|| short_id(&pod.container));
        let ports = pod.port_mappings.iter();
        rows.extend(ports.map(|port| port.row(owner.clone())));
    }
    for other in &network.other_port_mappings {
        let container = || format!("container {}", short_id(&other.container));
        let owner = other.pod.clone().unwrap_or_else(container);
        let owner = match other.left_over {
            true => style.tone(Tone::Bad, &format!("{owner} no longer exists")),
            false => owner,
        };
        rows.push(other.port.row(owner));
    }
    match rows.len() {
        1 => String::new(),
        _ => table(&rows),
    }
}
