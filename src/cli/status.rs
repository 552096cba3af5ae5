//! `gangplank status`: each network, its bridge, addresses, masquerading and pods.

use std::fmt::Write;

use serde::Serialize;

use crate::cli::node::{Network, Node, Pod};
use crate::cli::style::{Style, Tone, table};
use crate::cli::{Answer, args};
use crate::error::Error;
use crate::net::{Cidr, Mac};
use crate::netfilter::masquerade::Backend;

/// A network as JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NetworkStatus {
    name: String,
    file: String,
    bridge: BridgeStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipam: Option<String>,
    ranges: Vec<RangeStatus>,
    masquerade: Vec<&'static str>,
    pods: Vec<PodStatus>,
    /// Ports of the bridge that belong to no pod that is known.
    other_ports: Vec<String>,
}

#[derive(Serialize)]
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
struct RangeStatus {
    range: String,
    used: usize,
    /// As text: there are more addresses in IPv6 than numbers in JSON.
    size: String,
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
    /// As the pod sees it.
    received_bytes: u64,
    sent_bytes: u64,
    dropped_packets: u64,
    health: Vec<&'static str>,
}

/// Shows all networks, or one.
///
/// # Errors
/// When the node cannot be looked at, or has no network of that name.
pub fn status(asked: &args::Status, style: Style) -> Result<Answer, Error> {
    let node = Node::look(&asked.paths)?;
    let wanted = node.wanted(asked.network.as_deref())?.into_iter();
    let networks: Vec<NetworkStatus> = wanted.map(|it| observe(&node, it)).collect();
    Ok(match asked.json {
        true => Answer::json(&networks, 0),
        false => Answer::done(tell(&node, &networks, asked, style)),
    })
}

fn observe(node: &Node, network: &Network) -> NetworkStatus {
    let configured = &network.configured;
    let bridge = node.bridge(network);
    let masquerade_entry = node.inventory.entries();
    let of_network = masquerade_entry
        .iter()
        .filter(|it| it.network == network.name().as_str());
    let mut masquerade: Vec<&'static str> = of_network
        .map(|it| match it.backend {
            Backend::Iptables => "iptables",
            Backend::Nftables => "nftables",
        })
        .collect();
    masquerade.sort();
    masquerade.dedup();
    let ranges = network.usage().into_iter();
    // Shown, and never a reason to restore a check of MAC addresses: a pod may have used another one.
    let learned = node.host.fdb().unwrap_or_default();
    NetworkStatus {
        name: network.name().to_string(),
        file: configured.file.display().to_string(),
        bridge: BridgeStatus {
            name: configured.bridge.bridge.to_string(),
            state: match bridge {
                None => "absent",
                Some(bridge) if bridge.is_up => "up",
                Some(_) => "down",
            },
            mac: bridge
                .and_then(|bridge| bridge.mac)
                .map(|mac| mac.to_string())
                .unwrap_or_default(),
            mtu: bridge.map_or(0, |bridge| bridge.mtu),
            addresses: bridge
                .map(|bridge| node.addresses_of(bridge))
                .unwrap_or_default(),
            ports: bridge.map_or(0, |bridge| {
                node.links
                    .iter()
                    .filter(|link| link.master == Some(bridge.index))
                    .count()
            }),
        },
        ipam: configured.ipam.clone(),
        ranges: ranges
            .map(|(used, size, range)| RangeStatus {
                range,
                used,
                size: size.to_string(),
            })
            .collect(),
        masquerade,
        pods: network
            .pods
            .iter()
            .map(|pod| observe_pod(node, pod, &learned))
            .collect(),
        other_ports: network
            .unknown_ports
            .iter()
            .map(|at| node.links[*at].name.clone())
            .collect(),
    }
}

fn observe_pod(node: &Node, pod: &Pod, learned: &[(u32, Mac)]) -> PodStatus {
    let link = pod.link.map(|at| &node.links[at]);
    let traffic = link.and_then(|link| link.traffic).unwrap_or_default();
    PodStatus {
        name: pod.name.clone(),
        container: pod.attachment.container.to_string(),
        interface: pod.attachment.interface.to_string(),
        addresses: pod.addresses.clone(),
        // Where no runtime tells it: whatever speaks there. Too little to restore a check of MAC addresses from.
        mac: pod.mac.clone().or_else(|| {
            let index = link?.index;
            let (_, mac) = learned.iter().find(|(port, _)| *port == index)?;
            Some(mac.to_string())
        }),
        veth: link.map(|link| link.name.clone()),
        // What the host receives, the pod has sent.
        received_bytes: traffic.bytes[1],
        sent_bytes: traffic.bytes[0],
        dropped_packets: traffic.dropped.iter().sum(),
        health: pod.problems.iter().map(|ailment| ailment.word()).collect(),
    }
}

fn tell(node: &Node, networks: &[NetworkStatus], asked: &args::Status, style: Style) -> String {
    let mut text = String::new();
    for network in networks {
        tell_network(&mut text, network, style);
    }
    if networks.is_empty() {
        let _ = writeln!(
            text,
            "no network with a bridge in {}",
            asked.paths.conf_dir.display()
        );
    }
    for (file, error) in &node.unusable {
        let _ = writeln!(
            text,
            "{}: {} {error}",
            style.tone(Tone::Bad, "unusable"),
            file.display()
        );
    }
    for error in &node.inventory.failures {
        let _ = writeln!(text, "{}: {error}", style.tone(Tone::Warning, "not seen"));
    }
    text
}

fn tell_network(text: &mut String, network: &NetworkStatus, style: Style) {
    let NetworkStatus {
        name, file, bridge, ..
    } = network;
    let _ = writeln!(text, "{}  {file}", style.tone(Tone::Title, name));
    let addresses: Vec<String> = bridge.addresses.iter().map(Cidr::to_string).collect();
    let state = match bridge.state {
        "up" => style.tone(Tone::Good, "up"),
        other => style.tone(Tone::Bad, other),
    };
    let shown = match bridge.state {
        "absent" => String::new(),
        _ => format!(
            ", {}, MTU {}, {} {}, MAC {}",
            match addresses.is_empty() {
                true => "no address".to_owned(),
                false => addresses.join(" "),
            },
            bridge.mtu,
            bridge.ports,
            if bridge.ports == 1 { "port" } else { "ports" },
            bridge.mac
        ),
    };
    let _ = writeln!(text, "  bridge      {} {state}{shown}", bridge.name);
    for range in &network.ranges {
        let _ = writeln!(
            text,
            "  addresses   {} of {} used in {}",
            range.used, range.size, range.range
        );
    }
    match &network.ipam {
        Some(ipam) if network.ranges.is_empty() => {
            let _ = writeln!(text, "  addresses   from {ipam}");
        }
        _ => {}
    }
    let masquerade = match network.masquerade.is_empty() {
        true => "none".to_owned(),
        false => network.masquerade.join(" and "),
    };
    let _ = writeln!(text, "  masquerade  {masquerade}");
    if !network.other_ports.is_empty() {
        let _ = writeln!(text, "  other ports {}", network.other_ports.join(" "));
    }
    text.push_str(&pod_table(&network.pods, style));
    text.push('\n');
}

fn pod_table(pods: &[PodStatus], style: Style) -> String {
    if pods.is_empty() {
        return "  no pods\n".to_owned();
    }
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
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    for pod in pods {
        let addresses: Vec<String> = pod
            .addresses
            .iter()
            .map(|it| it.address().to_string())
            .collect();
        let health = match pod.health.is_empty() {
            true => style.tone(Tone::Good, "ok"),
            false => style.tone(Tone::Bad, &pod.health.join(", ")),
        };
        rows.push(vec![
            or_dash(pod.name.as_deref()),
            shortened(&pod.container),
            pod.interface.clone(),
            or_dash(Some(&addresses.join(","))),
            or_dash(pod.mac.as_deref()),
            or_dash(pod.veth.as_deref()),
            human(pod.received_bytes),
            human(pod.sent_bytes),
            health,
        ]);
    }
    table(&rows)
}

fn or_dash(text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty())
        .unwrap_or("-")
        .to_owned()
}

/// The first digits of an id that is a hash, as container runtimes show it.
fn shortened(id: &str) -> String {
    let is_hash = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hash {
        id[..13].to_owned()
    } else {
        id.to_owned()
    }
}

/// A number of bytes with a unit of 1024.
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
    fn bytes_are_readable() {
        let shown = [0, 1023, 1536, 5 << 20, u64::MAX].map(human);
        assert_eq!(shown, ["0 B", "1023 B", "1.5 KiB", "5.0 MiB", "16.0 EiB"]);
    }

    #[test]
    fn only_hashes_are_shortened() {
        assert_eq!(shortened(&"ab".repeat(32)), "ababababababa");
        assert_eq!(
            shortened("my-container-with-a-long-name"),
            "my-container-with-a-long-name"
        );
    }
}
