//! What may differ between two nodes on which the same was done: what the kernel or chance chooses, and what
//! Debian's reference (1.1.1) is known to do otherwise. Everything else must be equal.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::support::{Namespace, Node};

/// A result without chance: MAC addresses and the name of the host's end become words.
///
/// Debian's 1.1.1 prints `dns` in 1.0.0 even when it is empty, where the reference of today leaves it out
/// (specification, appendix B): an empty one is taken away from both.
pub fn result(mut result: Value) -> Value {
    let interfaces = result.get_mut("interfaces").and_then(Value::as_array_mut);
    for interface in interfaces.into_iter().flatten() {
        let name = interface["name"].as_str().unwrap_or_default().to_owned();
        let mac = interface["mac"].as_str().unwrap_or_default();
        assert_eq!(mac.len(), 17, "{interface}");
        interface["mac"] = "MAC".into();
        if interface.get("sandbox").is_none() && name.starts_with("veth") {
            interface["name"] = "VETH".into();
        }
    }
    if result["cniVersion"].as_str() >= Some("1.0.0")
        && result.get("dns") == Some(&Value::Object(Map::new()))
    {
        result.as_object_mut().unwrap().remove("dns");
    }
    result
}

/// The links of a place with their addresses, by name.
///
/// Left out: what is counted or chosen by the kernel (indices, MACs, link-local addresses which follow from them,
/// aliases, which are ours alone), the length of the queue, which the reference sets to 0 on the host's end (D14), and
/// how an IPv6 address came to be usable: ours says `nodad`, the reference's is tentative at first (D20).
///
/// The kernel tells a new link's state a moment after frames pass (its link watch); that is waited for.
pub fn links(place: &Namespace) -> Vec<Value> {
    let list = || -> Value { serde_json::from_str(&place.run("ip -j addr")).unwrap() };
    let is_unsettled = |link: &Value| {
        let flags = link["flags"].to_string();
        link["link_type"] == "ether" && flags.contains("LOWER_UP") && link["operstate"] != "UP"
    };
    let mut listed = list();
    for _ in 0..200 {
        if !listed.as_array().unwrap().iter().any(is_unsettled) {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
        listed = list();
    }
    let mut links: Vec<Value> = listed.as_array().unwrap().iter().map(link).collect();
    links.sort_by_key(|link| link["ifname"].to_string());
    links
}

fn link(listed: &Value) -> Value {
    let mut link = Map::new();
    let name = listed["ifname"].as_str().unwrap();
    link.insert("ifname".into(), end(name).into());
    for key in ["flags", "mtu", "qdisc", "operstate", "link_type", "master"] {
        if let Some(value) = listed.get(key) {
            link.insert(key.to_owned(), value.clone());
        }
    }
    let mut addresses = Vec::new();
    for address in listed["addr_info"].as_array().into_iter().flatten() {
        if address["scope"] == "link" {
            continue;
        }
        let mut address = address.as_object().cloned().unwrap_or_default();
        for key in ["nodad", "tentative"] {
            address.remove(key);
        }
        addresses.push(Value::Object(address));
    }
    link.insert("addresses".into(), addresses.into());
    Value::Object(link)
}

/// The name of a link, or `VETH` for the host's end, whose name is made up.
fn end(name: &str) -> &str {
    let digits = name.strip_prefix("veth").unwrap_or_default();
    if digits.len() >= 8 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        "VETH"
    } else {
        name
    }
}

/// The routes of a place in all tables, without those of link-local addresses and multicast, which follow from MACs.
///
/// Left out: IPv6 routes that the kernel adds once an address is no longer tentative (`local`, `anycast`).
pub fn routes(place: &Namespace) -> Vec<String> {
    let mut routes = Vec::new();
    for family in ["-4", "-6"] {
        let listed = place.run(&format!("ip {family} -j route show table all"));
        let listed: Value = serde_json::from_str(&listed).unwrap_or_default();
        for route in listed.as_array().into_iter().flatten() {
            let dst = route["dst"].as_str().unwrap_or_default();
            let kind = route["type"].as_str().unwrap_or("unicast");
            let is_kernels = family == "-6" && kind != "unicast";
            if !is_kernels && !dst.starts_with("fe80:") && !dst.starts_with("ff00:") {
                let text = format!("{family} {route}");
                routes.push(text);
            }
        }
    }
    routes.sort();
    routes
}

/// The nat tables as `iptables-save` prints them, without its comments, counters of packets and empty tables.
pub fn nat(node: &Node) -> Vec<String> {
    let mut lines = Vec::new();
    for program in ["iptables-save", "ip6tables-save"] {
        let saved = node.run(&format!("{program} -t nat"));
        let rules = saved.lines().filter(|line| line.starts_with("-A"));
        let chains = saved.lines().filter(|line| line.starts_with(":CNI-"));
        let all = rules.chain(chains);
        lines.extend(all.map(|line| format!("{program} {}", without_counters(line))));
    }
    lines
}

fn without_counters(line: &str) -> &str {
    line.split(" [").next().unwrap()
}

/// The files of leases: path, mode, content. Debian's 1.1.1 makes them 0644, the reference of today 0600.
///
/// Ours keeps two files more, the boot that the leases are of and an index of them; the reference walks past them.
pub fn files(node: &Node) -> Vec<String> {
    let mut files = node.files("/var/lib/cni");
    files.retain(|path, _| !path.contains("/.gangplank."));
    let line = |(path, content): (&String, &Vec<u8>)| {
        let mode = std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        let mode = if mode == 0o644 { 0o600 } else { mode };
        format!("{path} {mode:o} {:?}", String::from_utf8_lossy(content))
    };
    node.inside(|| files.iter().map(line).collect())
}

/// The flags of the bridge's ports.
pub fn ports(node: &Node) -> Vec<String> {
    let text = node.run("bridge -d link show");
    let mut ports = Vec::new();
    for word in text.split_whitespace().collect::<Vec<_>>().windows(2) {
        if ["hairpin", "isolated", "state", "learning", "flood", "guard"].contains(&word[0]) {
            ports.push(word.join(" "));
        }
    }
    ports
}

/// The rules of `macspoofchk`, with the names of ports and the MAC addresses of pods made words.
pub fn spoof_rules(node: &Node) -> Vec<String> {
    let listed = node.try_run("nft list table bridge nat").stdout;
    let listed = String::from_utf8(listed).unwrap();
    let word = |word: &str| match word {
        mac if mac.len() == 17 && mac.matches(':').count() == 5 => "MAC".to_owned(),
        name if name.starts_with("\"veth") => "VETH".to_owned(),
        other => other.to_owned(),
    };
    let line = |line: &str| line.split_whitespace().map(word).collect::<Vec<_>>();
    listed.lines().map(|text| line(text).join(" ")).collect()
}
