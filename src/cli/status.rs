//! `gangplank status`: each network with its bridge, addresses, masquerading and pods.

mod metrics;
mod ports;

use std::collections::BTreeSet;
use std::fmt::Write;

use serde::Serialize;

use crate::cli::Answer;
use crate::cli::args::StatusArgs;
use crate::cli::node::{Network, Node, Pod, RangeUsage};
use crate::cli::style::{Style, Tone, table};
use crate::error::Error;
use crate::kernel::netlink::Link;
use crate::net::{Cidr, Mac};
use crate::netfilter::masquerade::MasqueradeEntry;
use crate::plugins::call_metrics;
use ports::{OtherPortStatus, PortStatus, Ports, port_table};

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct NetworkStatus {
    name: String,
    file: String,
    /// `None` for a network without a bridge, which is listed only if it has mapped ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    bridge: Option<BridgeStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipam: Option<String>,
    ranges: Vec<RangeUsage>,
    masquerade: BTreeSet<&'static str>,
    pods: Vec<PodStatus>,
    /// Ports of the bridge that belong to no known pod.
    other_ports: Vec<String>,
    /// Ports of the host that are mapped to no known pod.
    other_port_mappings: Vec<OtherPortStatus>,
}

#[derive(Default, Serialize)]
struct BridgeStatus {
    name: String,
    /// "up", "down" or "absent".
    state: &'static str,
    mac: String,
    mtu: u32,
    addresses: Vec<Cidr>,
    ports: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PodStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    container: String,
    interface: String,
    addresses: Vec<Cidr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mac: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    veth: Option<String>,
    /// Received by the pod, sent by the host.
    received_bytes: u64,
    sent_bytes: u64,
    dropped_packets: u64,
    port_mappings: Vec<PortStatus>,
    health: Vec<&'static str>,
}

pub fn status(args: &StatusArgs, style: Style) -> Result<Answer, Error> {
    let node = Node::observe(&args.paths)?;
    let selected = node.select(args.network.as_deref())?.into_iter();
    let entries = node.inventory.entries();
    let fdb = node.host.fdb().unwrap_or_default();
    let mut ports = Ports::of(&node);
    let mut networks: Vec<NetworkStatus> = selected
        .map(|network| NetworkStatus {
            name: network.name().to_string(),
            file: network.configured.file.display().to_string(),
            bridge: Some(bridge_status(&node, network)),
            ipam: network.configured.ipam.clone(),
            ranges: network.usage(),
            masquerade: backends(network, &entries),
            pods: network
                .pods
                .iter()
                .map(|pod| PodStatus {
                    port_mappings: ports.take_of(network.name(), pod),
                    ..pod_status(pod, node.link_of(pod), &fdb)
                })
                .collect(),
            other_ports: node
                .unknown_ports(network)
                .map(|port| port.name.clone())
                .collect(),
            other_port_mappings: Vec::new(),
        })
        .collect();
    for network in &mut networks {
        network.other_port_mappings = ports.take_others(&network.name);
    }
    if args.network.is_none() {
        networks.extend(networks_without_bridge(ports));
    }
    if args.metrics {
        return Ok(metrics(&node, &networks));
    }
    let text = |networks: &Vec<NetworkStatus>| text(&node, networks, args, style);
    Ok(Answer::report(&networks, args.format, text))
}

/// The metrics, with warnings about those that are missing.
fn metrics(node: &Node, networks: &[NetworkStatus]) -> Answer {
    let mut warnings: Vec<String> = node
        .inventory
        .failures
        .iter()
        .map(ToString::to_string)
        .collect();
    let calls = call_metrics::read().unwrap_or_else(|cause| {
        warnings.push(format!(
            "cannot read the counters in {}: {cause}",
            call_metrics::PATH
        ));
        Vec::new()
    });
    let answer = Answer::text(metrics::text(networks, &calls));
    Answer { warnings, ..answer }
}

fn backends(network: &Network, entries: &BTreeSet<MasqueradeEntry>) -> BTreeSet<&'static str> {
    let entries = entries.iter();
    entries
        .filter(|entry| entry.network == network.name().as_str())
        .map(|entry| entry.backend.name())
        .collect()
}

/// The networks of the remaining mapped ports.
fn networks_without_bridge(mut ports: Ports) -> Vec<NetworkStatus> {
    let mut networks = Vec::new();
    while let Some(name) = ports.next_network() {
        networks.push(NetworkStatus {
            file: ports.file_of(&name),
            other_port_mappings: ports.take_others(&name),
            name,
            ..NetworkStatus::default()
        });
    }
    networks
}

fn bridge_status(node: &Node, network: &Network) -> BridgeStatus {
    let name = network.configured.bridge.bridge.to_string();
    let Some(bridge) = node.bridge(network) else {
        return BridgeStatus {
            name,
            state: "absent",
            ..BridgeStatus::default()
        };
    };
    BridgeStatus {
        name,
        state: if bridge.is_up { "up" } else { "down" },
        mac: bridge.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: bridge.mtu,
        addresses: node.addresses_of(bridge),
        ports: node.ports(bridge).count(),
    }
}

fn pod_status(pod: &Pod, link: Option<&Link>, fdb: &[(u32, Mac)]) -> PodStatus {
    let traffic = link.and_then(|link| link.traffic).unwrap_or_default();
    // Only for display, not for a MAC spoof check: the pod may have used another address.
    let from_fdb = || {
        let (_, mac) = fdb
            .iter()
            .find(|(port, _)| Some(*port) == link.map(|it| it.index))?;
        Some(mac.to_string())
    };
    PodStatus {
        name: pod.name.clone(),
        container: pod.attachment.container.to_string(),
        interface: pod.attachment.interface.to_string(),
        addresses: pod.addresses.clone(),
        mac: pod.mac.clone().or_else(from_fdb),
        veth: link.map(|link| link.name.clone()),
        received_bytes: traffic.bytes[1],
        sent_bytes: traffic.bytes[0],
        dropped_packets: traffic.dropped.iter().sum(),
        port_mappings: Vec::new(),
        health: pod.problems.iter().map(|it| it.as_str()).collect(),
    }
}

fn text(node: &Node, networks: &[NetworkStatus], args: &StatusArgs, style: Style) -> String {
    let mut text = String::new();
    for network in networks {
        write_network(&mut text, network, style);
    }
    if networks.is_empty() {
        let directory = args.paths.conf_dir.display();
        let _ = writeln!(text, "no network with a bridge in {directory}");
    }
    for (file, error) in &node.unusable {
        let label = style.tone(Tone::Bad, "unusable");
        let _ = writeln!(text, "{label}: {} {error}", file.display());
    }
    for error in &node.inventory.failures {
        let _ = writeln!(text, "{}: {error}", style.tone(Tone::Warning, "not seen"));
    }
    text
}

fn write_network(text: &mut String, network: &NetworkStatus, style: Style) {
    let title = style.tone(Tone::Title, or_unknown(&network.name));
    let _ = writeln!(text, "{}", format!("{title}  {}", network.file).trim_end());
    if let Some(bridge) = &network.bridge {
        write_bridge(text, bridge, style);
        write_addresses(text, network);
        if network.pods.is_empty() {
            text.push_str("  no pods\n");
        } else {
            text.push_str(&pod_table(&network.pods, style));
        }
    }
    text.push_str(&port_table(network, style));
    text.push('\n');
}

fn write_bridge(text: &mut String, bridge: &BridgeStatus, style: Style) {
    let tone = match bridge.state {
        "up" => Tone::Good,
        _ => Tone::Bad,
    };
    let state = style.tone(tone, bridge.state);
    let details = match bridge.state {
        "absent" => String::new(),
        _ => format!(
            ", {}, MTU {}, {} {}, MAC {}",
            or(join(&bridge.addresses, " "), "no address"),
            bridge.mtu,
            bridge.ports,
            if bridge.ports == 1 { "port" } else { "ports" },
            bridge.mac
        ),
    };
    let _ = writeln!(text, "  bridge      {} {state}{details}", bridge.name);
}

fn write_addresses(text: &mut String, network: &NetworkStatus) {
    for RangeUsage { range, used, size } in &network.ranges {
        let _ = writeln!(text, "  addresses   {used} of {size} used in {range}");
    }
    if let Some(ipam) = network.ipam.as_ref().filter(|_| network.ranges.is_empty()) {
        let _ = writeln!(text, "  addresses   from {ipam}");
    }
    let masquerade = or(join(&network.masquerade, " and "), "none");
    let _ = writeln!(text, "  masquerade  {masquerade}");
    if !network.other_ports.is_empty() {
        let _ = writeln!(text, "  other ports {}", network.other_ports.join(" "));
    }
}

fn or_unknown(name: &str) -> &str {
    match name {
        "" => "unknown network",
        name => name,
    }
}

fn pod_table(pods: &[PodStatus], style: Style) -> String {
    let titles = [
        "POD",
        "CONTAINER",
        "IF",
        "ADDRESS",
        "MAC",
        "VETH",
        "RECEIVED",
        "SENT",
        "HEALTH",
    ];
    let mut rows = vec![titles.map(str::to_owned)];
    rows.extend(pods.iter().map(|pod| {
        [
            or(pod.name.clone().unwrap_or_default(), "-"),
            short_id(&pod.container),
            pod.interface.clone(),
            or(join(pod.addresses.iter().map(|it| it.address()), ","), "-"),
            or(pod.mac.clone().unwrap_or_default(), "-"),
            or(pod.veth.clone().unwrap_or_default(), "-"),
            human(pod.received_bytes),
            human(pod.sent_bytes),
            match pod.health.is_empty() {
                true => style.tone(Tone::Good, "ok"),
                false => style.tone(Tone::Bad, &pod.health.join(", ")),
            },
        ]
    }));
    table(&rows)
}

fn join(items: impl IntoIterator<Item = impl ToString>, separator: &str) -> String {
    let texts: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    texts.join(separator)
}

fn or(text: String, placeholder: &str) -> String {
    match text.is_empty() {
        true => placeholder.to_owned(),
        false => text,
    }
}

/// The first digits of an ID that is a hash, as container runtimes print it.
fn short_id(id: &str) -> String {
    let is_hash = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    id[..if is_hash { 13 } else { id.len() }].to_owned()
}

/// A number of bytes with a binary prefix.
fn human(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let power = (bytes.max(1).ilog2() / 10) as usize;
    match power {
        0 => format!("{bytes} B"),
        _ => format!(
            "{:.1} {}",
            bytes as f64 / (1u64 << (10 * power)) as f64,
            units[power]
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_a_binary_prefix() {
        let shown = [0, 1023, 1536, 5 << 20, u64::MAX].map(human);
        assert_eq!(shown, ["0 B", "1023 B", "1.5 KiB", "5.0 MiB", "16.0 EiB"]);
    }

    #[test]
    fn only_hashes_are_shortened() {
        assert_eq!(short_id(&"ab".repeat(32)), "ababababababa");
        assert_eq!(
            short_id("my-container-with-a-long-name"),
            "my-container-with-a-long-name"
        );
    }
}
