//! The state of a node as a set of facts, each with its owner, read with iproute2, iptables-save and nft.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::net::IpAddr;
use std::process::{Child, Stdio};

use serde_json::{Deserializer, Value};

use super::networks::{INTERFACES, NETWORKS, PODS};
use crate::support::{Node, chain_of, command};

/// The attachment, or all attachments of a container to a network, that an object belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    pub network: Option<String>,
    pub container: String,
    pub ifname: Option<String>,
}

/// The object that a fact describes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    Link {
        index: u64,
        name: String,
    },
    Address {
        link: String,
    },
    Route {
        link: String,
    },
    /// A sysctl of a link, or of the node (`all`).
    Parameter {
        link: String,
    },
    /// A rule, chain or map element of an attachment.
    Rule(Owner),
    /// Objects shared by attachments: tables, base chains, chains of a network.
    Shared,
    /// A file in a network's lease directory; a lease has an owner.
    Lease {
        network: String,
        owner: Option<Owner>,
    },
    /// Rules of an administrator or of another tool.
    Foreign,
}

/// One object and its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    pub subject: Subject,
    pub value: String,
}

/// State by a key that identifies the object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub facts: BTreeMap<String, Fact>,
}

/// A changed object.
pub struct Change<'s> {
    pub key: &'s str,
    pub before: Option<&'s Fact>,
    pub after: Option<&'s Fact>,
}

impl Change<'_> {
    pub fn subject(&self) -> &Subject {
        let fact = self.after.or(self.before);
        &fact.expect("a change has a side").subject
    }

    /// The type of object, and whether it is new or gone.
    pub fn kind(&self) -> String {
        let object = match self.subject() {
            Subject::Link { name, .. } if name.starts_with("veth") => "a pod's link",
            Subject::Link { .. } => "a link",
            Subject::Address { .. } => "an address",
            Subject::Route { .. } => "a route",
            Subject::Parameter { .. } => "a kernel parameter",
            Subject::Rule(_) => "a rule of an attachment",
            Subject::Shared => "a shared object",
            Subject::Lease { .. } => "a lease",
            Subject::Foreign => "a foreign rule",
        };
        match (self.before, self.after) {
            (None, _) => format!("{object} (new)"),
            (_, None) => format!("{object} (gone)"),
            _ => object.to_owned(),
        }
    }

    pub fn text(&self) -> String {
        let side = |fact: Option<&Fact>| fact.map_or("absent".to_owned(), |it| it.value.clone());
        format!(
            "{}: {:?} became {:?}",
            self.key,
            side(self.before),
            side(self.after)
        )
    }
}

pub const LEASES: &str = "/var/lib/cni/networks";

/// The sysctls that plugins or administrators change.
const PARAMETERS: [&str; 3] = [
    "ipv6/conf/LINK/accept_ra",
    "ipv4/conf/LINK/rp_filter",
    "ipv6/conf/LINK/disable_ipv6",
];

impl Snapshot {
    /// The state of a node now. `/run/tools` has the programs of both variants of iptables.
    pub fn take(node: &Node) -> Snapshot {
        let mut snapshot = Snapshot::default();
        let outputs = node.inside(|| {
            // /proc/thread-self, because only this thread is in the node's namespaces.
            let has_legacy = fs::read_to_string("/proc/thread-self/net/ip_tables_names");
            let has_legacy = has_legacy.is_ok_and(|names| !names.is_empty());
            let mut lines = vec![
                "ip -d -j -force -batch /run/tools/batch",
                "/run/tools/iptables-nft-save",
                "/run/tools/ip6tables-nft-save",
                "nft -s list ruleset",
            ];
            if has_legacy {
                lines.push("iptables-legacy-save");
            }
            let children: Vec<Child> = lines.iter().map(|line| spawn(line)).collect();
            snapshot.leases();
            snapshot.node_parameters();
            children.into_iter().map(output).collect::<Vec<String>>()
        });
        let mut links = snapshot.links(&outputs[0]);
        links.push("all".to_owned());
        snapshot.iptables("iptables-nft", &outputs[1]);
        snapshot.iptables("ip6tables-nft", &outputs[2]);
        snapshot.nftables(&outputs[3]);
        if let Some(legacy) = outputs.get(4) {
            snapshot.iptables("iptables-legacy", legacy);
        }
        node.inside(|| snapshot.link_parameters(&links));
        snapshot
    }

    pub fn changes<'s>(&'s self, later: &'s Snapshot) -> Vec<Change<'s>> {
        let keys: BTreeSet<&String> = self.facts.keys().chain(later.facts.keys()).collect();
        let change = |key: &'s String| Change {
            key,
            before: self.facts.get(key),
            after: later.facts.get(key),
        };
        let changes = keys.into_iter().map(change);
        changes
            .filter(|change| change.before != change.after)
            .collect()
    }

    pub fn link_name(&self, index: u64) -> Option<&str> {
        match &self.facts.get(&format!("link {index}"))?.subject {
            Subject::Link { name, .. } => Some(name),
            _ => None,
        }
    }

    fn link(&self, wanted: &str) -> Option<&Fact> {
        let mut facts = self.facts.values();
        facts.find(|fact| matches!(&fact.subject, Subject::Link { name, .. } if name == wanted))
    }

    pub fn mac_of(&self, name: &str) -> Option<&str> {
        let (_, mac) = self.link(name)?.value.split_once(" mac=\"")?;
        mac.split('"').next()
    }

    pub fn is_up(&self, name: &str) -> bool {
        self.link(name)
            .is_some_and(|link| link.value.contains(" up=true "))
    }

    pub fn has_link(&self, name: &str) -> bool {
        self.link(name).is_some()
    }

    /// Whether a bridge has the spanning tree protocol enabled. A port then forwards nothing for 30 seconds after it
    /// came up (twice the default forward delay).
    pub fn has_spanning_tree(&self, bridge: &str) -> bool {
        self.link(bridge)
            .is_some_and(|link| link.value.contains(" stp=1 "))
    }

    /// Whether the policy of FORWARD is DROP.
    pub fn drops_forwarded(&self) -> bool {
        let mut facts = self.facts.iter();
        facts.any(|(key, fact)| {
            key.ends_with(" filter FORWARD") && fact.value.lines().any(|line| line == "DROP")
        })
    }

    /// The number of links with an address.
    pub fn links_with(&self, address: IpAddr) -> usize {
        let wanted = format!(" {address}/");
        let of_links = self.facts.iter().filter(|(key, fact)| {
            matches!(fact.subject, Subject::Address { .. }) && key.contains(&wanted)
        });
        of_links.count()
    }

    /// The bridge that the first of these links is a port of.
    pub fn bridge_of(&self, links: &BTreeSet<u64>) -> Option<&str> {
        let mut facts = links
            .iter()
            .filter_map(|index| self.facts.get(&format!("link {index}")));
        facts.find_map(|fact| {
            fact.value
                .split(' ')
                .find_map(|word| word.strip_prefix("master="))
        })
    }

    pub fn lease(&self, network: &str, address: &str) -> Option<&str> {
        let fact = self.facts.get(&format!("file {network}/{address}"))?;
        Some(&fact.value)
    }

    fn add(&mut self, key: String, subject: Subject, value: String) {
        self.facts.insert(key, Fact { subject, value });
    }

    /// Adds links, addresses and routes. Returns the names of links that do not belong to pods.
    fn links(&mut self, text: &str) -> Vec<String> {
        let mut names = Vec::new();
        let documents = Deserializer::from_str(text).into_iter::<Value>().flatten();
        for object in documents.flat_map(|list| list.as_array().cloned().unwrap_or_default()) {
            if object.get("addr_info").is_some() {
                self.addresses(&object);
            } else if object.get("ifname").is_some() {
                self.one_link(&object);
                let name = text_of(&object, "ifname");
                if !name.starts_with("veth") && name != "lo" {
                    names.push(name);
                }
            } else if object.get("dst").is_some() && object.get("src").is_none() {
                self.route(&object);
            }
        }
        names
    }

    fn one_link(&mut self, link: &Value) {
        let (index, name) = (
            link["ifindex"].as_u64().unwrap_or(0),
            text_of(link, "ifname"),
        );
        let kind = text_of(&link["linkinfo"], "info_kind");
        let is_up = link["flags"].to_string().contains("\"UP\"");
        let mut value = format!("{name} {kind} up={is_up} mac={}", link["address"]);
        match kind.as_str() {
            // The kernel changes a bridge's MTU with its ports.
            "bridge" => {
                let data = &link["linkinfo"]["info_data"];
                value += &format!(
                    " stp={} vlans={}",
                    data["stp_state"], data["vlan_filtering"]
                );
            }
            _ => value += &format!(" mtu={}", link["mtu"]),
        }
        let port = &link["linkinfo"]["info_slave_data"];
        let flags = (&port["hairpin"], &port["isolated"]);
        value += &format!(
            " master={} port={}/{} alias={}",
            link["master"], flags.0, flags.1, link["ifalias"]
        );
        self.add(
            format!("link {index}"),
            Subject::Link { index, name },
            value,
        );
    }

    fn addresses(&mut self, link: &Value) {
        let name = text_of(link, "ifname");
        for address in link["addr_info"].as_array().into_iter().flatten() {
            // The kernel assigns link-local addresses.
            if address["scope"] == "link" {
                continue;
            }
            let key = format!(
                "address {name} {}/{}",
                text_of(address, "local"),
                address["prefixlen"]
            );
            self.add(key, Subject::Address { link: name.clone() }, String::new());
        }
    }

    fn route(&mut self, route: &Value) {
        let dst = text_of(route, "dst");
        let kind = text_of(route, "type");
        let is_kernels =
            text_of(route, "table") == "local" || kind == "multicast" || dst.starts_with("fe80:");
        if is_kernels {
            return;
        }
        let mut route = route.clone();
        let link = text_of(&route, "dev");
        for changing in ["flags", "expires", "pref", "metrics"] {
            route.as_object_mut().unwrap().remove(changing);
        }
        self.add(
            format!("route {route}"),
            Subject::Route { link },
            String::new(),
        );
    }

    fn leases(&mut self) {
        for network in fs::read_dir(LEASES).into_iter().flatten().flatten() {
            let name = network.file_name().to_string_lossy().into_owned();
            for file in fs::read_dir(network.path()).into_iter().flatten().flatten() {
                let mut bytes = Vec::new();
                let opened = fs::File::open(file.path());
                let _ = opened.and_then(|mut file| file.read_to_end(&mut bytes));
                let file = file.file_name().to_string_lossy().into_owned();
                let content = String::from_utf8_lossy(&bytes).into_owned();
                let subject = match file.parse::<std::net::IpAddr>() {
                    Ok(_) => Subject::Lease {
                        network: name.clone(),
                        owner: lease_owner(&name, &content),
                    },
                    Err(_) => Subject::Shared,
                };
                self.add(format!("file {name}/{file}"), subject, content);
            }
        }
    }

    fn node_parameters(&mut self) {
        for parameter in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            self.parameter(parameter, "all");
        }
    }

    fn link_parameters(&mut self, links: &[String]) {
        for link in links {
            for parameter in PARAMETERS {
                self.parameter(&parameter.replace("LINK", link), link);
            }
        }
    }

    fn parameter(&mut self, parameter: &str, link: &str) {
        if let Ok(value) = fs::read_to_string(format!("/proc/sys/net/{parameter}")) {
            let link = link.to_owned();
            self.add(
                format!("parameter {parameter}"),
                Subject::Parameter { link },
                value.trim().to_owned(),
            );
        }
    }

    /// Parses `iptables-save`: one fact per rule of an attachment, one fact per chain for all others.
    fn iptables(&mut self, program: &str, text: &str) {
        let mut table = "";
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name;
            } else if let Some(chain) = line.strip_prefix(':') {
                let mut words = chain.split(' ');
                let (name, policy) = (words.next().unwrap_or_default(), words.next());
                match chain_owner(name) {
                    Some(owner) => {
                        self.add(
                            format!("{program} {table} :{name}"),
                            Subject::Rule(owner),
                            String::new(),
                        );
                    }
                    // An empty base chain with the policy ACCEPT has no effect.
                    None if policy == Some("ACCEPT") => {}
                    None => self.append(
                        &format!("{program} {table} {name}"),
                        policy.unwrap_or_default(),
                    ),
                }
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let chain = rule.split(' ').next().unwrap_or_default();
                match rule_owner(rule) {
                    Some(owner) => {
                        self.add(
                            format!("{program} {table} {rule}"),
                            Subject::Rule(owner),
                            String::new(),
                        );
                    }
                    None => self.append(&format!("{program} {table} {chain}"), rule),
                }
            }
        }
    }

    fn append(&mut self, key: &str, line: &str) {
        let fact = self.facts.entry(key.to_owned()).or_insert_with(|| Fact {
            subject: Subject::Foreign,
            value: String::new(),
        });
        fact.value += line;
        fact.value += "\n";
    }

    /// Parses `nft list ruleset`, without the tables of iptables-nft.
    fn nftables(&mut self, text: &str) {
        let mut table = String::new();
        let mut chain = String::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let words = line.trim();
            if line.starts_with("table ") {
                table = words.trim_end_matches(" {").to_owned();
            }
            let of_iptables = [
                "ip nat",
                "ip6 nat",
                "ip filter",
                "ip6 filter",
                "ip mangle",
                "ip raw",
            ];
            let name = table.trim_start_matches("table ");
            if of_iptables.contains(&name) || words.is_empty() || words == "}" {
                continue;
            }
            if let Some(begun) = words.strip_prefix("chain ") {
                chain = begun.trim_end_matches(" {").to_owned();
            }
            match name {
                "inet gangplank" | "inet cni_plugins_masquerade" => self.plugin_line(name, words),
                "bridge nat" => match spoof_owner(words).or_else(|| spoof_owner(&chain)) {
                    Some(owner) => {
                        self.add(
                            format!("nft {name} {chain} {words}"),
                            Subject::Rule(owner),
                            String::new(),
                        );
                    }
                    None if words.starts_with("chain ")
                        || words.starts_with("table ")
                        || words.starts_with("type ") => {}
                    None => self.append(&format!("nft {name} {chain}"), words),
                },
                _ => self.append(&format!("nft {name}"), words),
            }
        }
    }

    /// A line of a table of a plugin, which may have several elements. Elements of attachments have a comment.
    fn plugin_line(&mut self, table: &str, line: &str) {
        let line = line.trim_start_matches("elements = { ");
        for element in split_outside_quotes(line) {
            let element = element.trim_matches([',', '}', ' ']);
            let subject = comment_owner(element).map_or(Subject::Shared, Subject::Rule);
            self.add(format!("nft {table} {element}"), subject, String::new());
        }
    }
}

/// Splits at commas outside of quotes.
fn split_outside_quotes(line: &str) -> Vec<String> {
    let mut is_quoted = false;
    let parts = line.split(|c: char| {
        is_quoted ^= c == '"';
        c == ',' && !is_quoted
    });
    parts.map(str::to_owned).collect()
}

fn text_of(object: &Value, key: &str) -> String {
    object[key].as_str().unwrap_or_default().to_owned()
}

fn spawn(line: &str) -> Child {
    let mut command = command(line);
    let command = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command.spawn().unwrap_or_else(|e| panic!("{line}: {e}"))
}

fn output(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The owner of a lease: the file has the container and the interface in two lines.
fn lease_owner(network: &str, content: &str) -> Option<Owner> {
    let (container, ifname) = content.split_once('\n')?;
    let (container, ifname) = (container.trim(), ifname.trim());
    let is_known = PODS.contains(&container) && INTERFACES.contains(&ifname);
    is_known.then(|| Owner {
        network: Some(network.to_owned()),
        container: container.to_owned(),
        ifname: Some(ifname.to_owned()),
    })
}

/// The owner of a chain `CNI-HASH`.
fn chain_owner(chain: &str) -> Option<Owner> {
    if !chain.starts_with("CNI-") {
        return None;
    }
    let mut all = NETWORKS
        .iter()
        .flat_map(|network| PODS.iter().map(move |pod| (network, pod)));
    let (network, pod) = all.find(|(network, pod)| chain_of(network, pod) == chain)?;
    Some(Owner {
        network: Some((*network).to_owned()),
        container: (*pod).to_owned(),
        ifname: None,
    })
}

/// The owner of a rule of iptables: its comment is `name: "NETWORK" id: "CONTAINER"`.
fn rule_owner(rule: &str) -> Option<Owner> {
    let (_, comment) = rule.split_once("name: \\\"")?;
    let (network, rest) = comment.split_once("\\\" id: \\\"")?;
    let (container, _) = rest.split_once("\\\"")?;
    Some(Owner {
        network: Some(network.to_owned()),
        container: container.to_owned(),
        ifname: None,
    })
}

/// The owner of an nftables object: its comment is `HASH-HASH, net: NETWORK, if: INTERFACE, id: CONTAINER`.
fn comment_owner(line: &str) -> Option<Owner> {
    let (_, rest) = line.split_once(", net: ")?;
    let (network, rest) = rest.split_once(", if: ")?;
    let (ifname, rest) = rest.split_once(", id: ")?;
    let container = rest.split('"').next()?;
    Some(Owner {
        network: Some(network.to_owned()),
        container: container.to_owned(),
        ifname: Some(ifname.to_owned()),
    })
}

/// The owner of a MAC spoof check, whose chains and comments name container and interface, not the network.
fn spoof_owner(line: &str) -> Option<Owner> {
    let mut all = PODS
        .iter()
        .flat_map(|pod| INTERFACES.iter().map(move |name| (pod, name)));
    let (pod, ifname) = all.find(|(pod, ifname)| {
        [
            format!("cni-br-iface-{pod}-{ifname}"),
            format!("macspoofchk-{pod}-{ifname}"),
        ]
        .iter()
        .any(|name| line.contains(name))
    })?;
    Some(Owner {
        network: None,
        container: (*pod).to_owned(),
        ifname: Some((*ifname).to_owned()),
    })
}
