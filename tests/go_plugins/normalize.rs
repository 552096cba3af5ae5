//! Removes differences that are expected between two nodes after the same calls: values chosen by the kernel or at
//! random, and known differences of Debian's Go plugins (1.1.1). Everything else must be equal.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::support::{Namespace, Node};

/// A result with placeholders for MAC addresses and the name of the host end.
/// Go plugins 1.1.1 print an empty `dns` in results of 1.0.0, newer ones do not: it is removed from both.
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

/// The links of a namespace with their addresses, sorted by name.
/// Without values chosen by the kernel (indices, MAC addresses, link-local addresses), aliases, which only gangplank
/// sets, the queue length, which the Go plugin sets to 0 on the host end (D14), and the flags `nodad` (gangplank) and
/// `tentative` (Go plugin, D20) of IPv6 addresses.
/// The kernel updates the operational state of a link asynchronously (linkwatch), so this waits for it.
pub fn links(namespace: &Namespace) -> Vec<Value> {
    let list = || -> Value { serde_json::from_str(&namespace.run("ip -j addr")).unwrap() };
    let is_changing = |link: &Value| {
        let flags = link["flags"].to_string();
        link["link_type"] == "ether" && flags.contains("LOWER_UP") && link["operstate"] != "UP"
    };
    let mut listed = list();
    for _ in 0..200 {
        if !listed.as_array().unwrap().iter().any(is_changing) {
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
    link.insert("ifname".into(), link_name(name).into());
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

/// The name of a link, or `VETH` for the host end.
fn link_name(name: &str) -> &str {
    let digits = name.strip_prefix("veth").unwrap_or_default();
    if digits.len() >= 8 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        "VETH"
    } else {
        name
    }
}

/// The routes of a namespace in all tables, without link-local and multicast routes.
/// Without IPv6 routes that the kernel adds after duplicate address detection (`local`, `anycast`).
pub fn routes(namespace: &Namespace) -> Vec<String> {
    let mut routes = Vec::new();
    for family in ["-4", "-6"] {
        let listed = namespace.run(&format!("ip {family} -j route show table all"));
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

/// The output of `iptables-save -t nat` without comments, counters and built-in chains.
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

/// Lease files: path, mode and content. Go plugins 1.1.1 create them with mode 0644, newer ones with 0600.
/// Without gangplank's two additional files, the boot ID and the lease index, which the Go plugins ignore.
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

/// The rules of `macspoofchk`, with placeholders for port names and MAC addresses.
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
