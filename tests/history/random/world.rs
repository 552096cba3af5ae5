//! A node, a host outside, and the actions carried out on them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::action::{Action, Implementation, NetnsArgument, Options, Target, Verb};
use super::model::{Attachment, Model, State};
use super::networks::{self, NETWORKS};
use super::snapshot::{LEASES, Snapshot};
use super::traffic::{Edge, Sender, Traffic};
use crate::support::{Answer, Call, Node, PATH, Pod, binary, connect, go_plugins};

const CONF: &str = "/run/net.d";
const CACHE: &str = "/run/results";

/// Prepares a node: no duplicate address detection (which would add a second to each step), a writable copy of
/// /etc/alternatives, in which actions switch the variant of iptables.
const PREPARE: &str = r"
set -e
mkdir -p /run/tools /run/upper /run/work /run/net.d /run/results /run/backup
cp -a /usr/sbin/xtables-nft-multi /run/tools/
ln -s xtables-nft-multi /run/tools/iptables-nft-save
ln -s xtables-nft-multi /run/tools/ip6tables-nft-save
printf 'link show\naddress show\nroute show table all\n' > /run/tools/batch
mount -t overlay overlay -o lowerdir=/etc/alternatives,upperdir=/run/upper,workdir=/run/work /etc/alternatives
echo 11111111-1111-4111-8111-111111111111 > /run/boot_id
mount --bind /run/boot_id /proc/sys/kernel/random/boot_id
echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
ip address add 192.0.2.1/24 dev eth0
ip address add 2001:db8::1/64 dev eth0 nodad
";

pub struct Outcome {
    /// The answer of a plugin or of the gangplank CLI.
    pub answer: Option<Answer>,
    pub took: Duration,
}

impl Outcome {
    /// Whether the call succeeded.
    pub fn succeeded(&self) -> bool {
        self.answer
            .as_ref()
            .is_some_and(|answer| answer.code == Some(0))
    }

    /// Whether the call was killed.
    pub fn was_killed(&self) -> bool {
        // The shell's exit status of a killed process is 128 + signal.
        let killed = [None, Some(137), Some(124)];
        self.answer
            .as_ref()
            .is_some_and(|answer| killed.contains(&answer.code))
    }
}

pub struct World {
    pub node: Node,
    _outside: Node,
    traffic: Traffic,
    pods: BTreeMap<String, Pod>,
    configs: BTreeMap<String, Value>,
    /// The plugins that are called instead of gangplank's.
    pub under_test: Implementation,
    pub model: Model,
    /// The state after the last action.
    pub snapshot: Snapshot,
    /// The probes that were answered after the last action.
    pub edges: BTreeSet<Edge>,
}

impl World {
    pub fn new(under_test: Implementation) -> World {
        let (node, outside) = (Node::new("node"), Node::new("outside"));
        for plugin in ["bridge", "host-local"] {
            node.install_go_plugin(plugin);
        }
        connect(&node, "eth0", &outside, "eth0");
        shell(&node, PREPARE, &[]);
        shell(
            &outside,
            "ip a add 192.0.2.2/24 dev eth0 && ip a add 2001:db8::2/64 dev eth0 nodad",
            &[],
        );
        let addresses = ["192.0.2.2", "2001:db8::2"].map(|ip| ip.parse().unwrap());
        let traffic = Traffic::new(&node, &outside, addresses);
        let configs = NETWORKS
            .iter()
            .map(|name| ((*name).to_owned(), networks::config(name)));
        let mut world = World {
            traffic,
            node,
            _outside: outside,
            pods: BTreeMap::new(),
            configs: configs.collect(),
            under_test,
            model: Model::default(),
            snapshot: Snapshot::default(),
            edges: BTreeSet::new(),
        };
        for network in NETWORKS {
            world.write_config(network);
        }
        world.snapshot = Snapshot::take(&world.node);
        world
    }

    pub fn config(&self, network: &str) -> &Value {
        &self.configs[network]
    }

    /// Carries out an action, without updating snapshot and model.
    pub fn act(&mut self, action: &Action) -> Outcome {
        let began = Instant::now();
        let answer = match action {
            Action::Call(by, verb, target, options) => Some(self.call(*by, *verb, target, options)),
            Action::Gc(by, network, without) => Some(self.gc(*by, network, without.as_deref())),
            Action::Status(by, network) => {
                let mut config = self.configs[network].clone();
                config["cniVersion"] = "1.1.0".into();
                Some(self.plugin(*by, &config).verb("STATUS").run())
            }
            Action::Cli(words) => match self.under_test {
                Implementation::Gangplank => Some(self.command_line(words)),
                Implementation::Go => None,
            },
            Action::Config {
                network,
                key,
                value,
            } => {
                self.configure(network, key, value);
                None
            }
            Action::End(pod) => {
                self.end_pods(|name| name == pod);
                None
            }
            Action::Reboot => {
                self.reboot();
                None
            }
            Action::Node(command) => {
                shell(&self.node, command, &self.variables());
                None
            }
        };
        Outcome {
            answer,
            took: began.elapsed(),
        }
    }

    pub fn observe(&mut self) -> Snapshot {
        Snapshot::take(&self.node)
    }

    pub fn measure(&self, expected: &BTreeSet<Edge>, rounds: u32) -> BTreeSet<Edge> {
        let live = self.model.live();
        let senders: Vec<Sender<'_>> = live
            .filter_map(|(target, attachment)| {
                Some(Sender {
                    target: target.clone(),
                    namespace: self
                        .pods
                        .get(&target.pod)
                        .filter(|_| target.network != "raw")?,
                    addresses: attachment.addresses.clone(),
                    gateways: attachment.gateways.clone(),
                    is_masqueraded: attachment.is_masqueraded(),
                })
            })
            .collect();
        self.traffic.measure(&senders, expected, rounds)
    }

    /// A call of the plugin that a configuration names.
    fn plugin(&self, by: Implementation, config: &Value) -> Call<'_> {
        let plugin = config["type"].as_str().expect("a plugin's name");
        let is_go = by == Implementation::Go || self.under_test == Implementation::Go;
        let call = match is_go {
            true => {
                let call = self.node.cni(&format!("go-{plugin}"));
                call.env("CNI_PATH", &go_plugins().to_string_lossy())
            }
            false => self.node.cni(plugin),
        };
        call.config(config)
    }

    fn call(
        &mut self,
        by: Implementation,
        verb: Verb,
        target: &Target,
        options: &Options,
    ) -> Answer {
        if verb == Verb::Add && !self.pods.contains_key(&target.pod) {
            let pod = self.node.pod(&target.pod);
            let no_dad = "/proc/sys/net/ipv6/conf/default/accept_dad";
            pod.inside(|| fs::write(no_dad, "0")).unwrap();
            self.pods.insert(target.pod.clone(), pod);
        }
        let known = self.model.attachments.get(&target.clone());
        let mut config = self.configs[&target.network].clone();
        if let Some(known) = known.filter(|_| verb != Verb::Add) {
            if !options.current_config {
                config = known.config.clone();
            }
            if !options.without_prev_result && !known.result.is_null() {
                config["prevResult"] = known.result.clone();
            }
        }
        let netns = match &options.netns {
            NetnsArgument::Own => format!("/run/netns/{}", target.pod),
            NetnsArgument::Unset => String::new(),
            NetnsArgument::Missing => "/run/netns/gone".to_owned(),
            NetnsArgument::Of(pod) => format!("/run/netns/{pod}"),
        };
        let call = self.plugin(by, &config).verb(verb.command());
        let mut call = call
            .container(&target.pod)
            .ifname(&target.ifname)
            .netns(&netns);
        if let Some(delay) = options.kill_after {
            call = call.under(&format!("timeout -s KILL 0.{delay:06}"));
        }
        let answer = call.run();
        if answer.code == Some(0) {
            match (verb, target.network.as_str()) {
                (Verb::Add, "flat") => self.add_flat_address(target),
                (Verb::Add, "raw") => self.add_raw_link(target, &answer),
                (Verb::Del, "raw") => self.delete_link(target),
                _ => {}
            }
        }
        answer
    }

    /// Adds a link with the address, as a plugin that calls host-local does, for example ptp.
    fn add_raw_link(&self, target: &Target, answer: &Answer) {
        let Target { pod, ifname, .. } = target;
        let (link, inside) = (raw_link(target), format!("raw-{ifname}"));
        let result = answer.ok();
        let address = result["ips"][0]["address"].as_str().unwrap_or_default();
        let command = format!(
            "ip link add {link} type veth peer name {inside} netns {pod} && ip link set {link} up; \
            ip -n {pod} address add {address} dev {inside}; ip -n {pod} link set {inside} up"
        );
        shell(&self.node, &command, &[]);
    }

    fn delete_link(&self, target: &Target) {
        shell(
            &self.node,
            &format!("ip link delete {}", raw_link(target)),
            &[],
        );
    }

    /// Assigns an address, as DHCP would: a flat network has no IPAM.
    fn add_flat_address(&self, target: &Target) {
        let Target { pod, ifname, .. } = target;
        let command = format!("ip address add {} dev {ifname}", flat_address(target));
        let _ = self.pods[pod].try_run(&command);
    }

    fn gc(&self, by: Implementation, network: &str, without: Option<&str>) -> Answer {
        let mut config = self.configs[network].clone();
        config["cniVersion"] = "1.1.0".into();
        let of_network = self
            .model
            .attachments
            .iter()
            .filter(|(target, _)| target.network == network);
        let valid = of_network.filter(|(target, attachment)| {
            attachment.state != State::Dead && Some(&*target.pod) != without
        });
        let valid = valid.map(|(it, _)| json!({ "containerID": it.pod, "ifname": it.ifname }));
        config["cni.dev/valid-attachments"] = valid.collect();
        self.plugin(by, &config).verb("GC").run()
    }

    fn command_line(&self, words: &str) -> Answer {
        let mut command = Command::new(binary());
        command.args(words.split_whitespace());
        command.args([
            "--conf-dir",
            CONF,
            "--cache-dir",
            CACHE,
            "--data-dir",
            LEASES,
        ]);
        if words.starts_with("doctor") {
            command.args(["--cni-path", Node::BIN]);
        }
        command
            .env_remove("CNI_PATH")
            .env("PATH", PATH)
            .stdin(Stdio::null());
        Answer::of(self.node.inside(|| command.output().unwrap()))
    }

    fn configure(&mut self, network: &str, key: &str, value: &str) {
        let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
        if let Some(config) = self.configs.get_mut(network) {
            config[key] = value;
            self.write_config(network);
        }
    }

    fn write_config(&self, network: &str) {
        let config = &self.configs[network];
        if config["type"] == "bridge" {
            let list = json!({ "cniVersion": "1.0.0", "name": network, "plugins": [config] });
            self.node
                .write(&format!("{CONF}/{network}.conflist"), &list.to_string());
        }
    }

    /// Writes or removes libcni's cache entry of an attachment.
    pub fn update_cache(&self, target: &Target) {
        let Target {
            pod,
            network,
            ifname,
        } = target;
        let path = format!("{CACHE}/{network}-{pod}-{ifname}");
        let live = self
            .model
            .attachments
            .get(target)
            .filter(|it| !it.result.is_null());
        let text = live.map(|attachment| {
            json!({
                "kind": "cniCacheV1", "containerId": pod, "config": "e30=", "ifName": ifname,
                "networkName": network, "netns": format!("/run/netns/{pod}"), "result": attachment.result,
            })
            .to_string()
        });
        self.node.inside(|| {
            let _ = match text {
                Some(text) => fs::write(path, text),
                None => fs::remove_file(path),
            };
        });
    }

    fn end_pods(&mut self, is_ended: impl Fn(&str) -> bool) {
        let attachments = self.model.attachments.iter_mut();
        for (_, attachment) in attachments.filter(|(target, _)| is_ended(&target.pod)) {
            attachment.state = State::Dead;
        }
        let (ended, others): (BTreeMap<_, _>, _) = std::mem::take(&mut self.pods)
            .into_iter()
            .partition(|(name, _)| is_ended(name));
        self.pods = others;
        for pod in ended.into_values() {
            // The kernel deletes the links of a namespace asynchronously.
            let links = pod.run("ip -o link");
            for peer in links.lines().filter_map(host_end) {
                if let Some(name) = self.snapshot.link_name(peer) {
                    shell(&self.node, &format!("ip link delete {name}"), &[]);
                }
            }
            pod.end();
        }
    }

    fn reboot(&mut self) {
        self.end_pods(|_| true);
        self.model.has_rebooted = true;
        let has_legacy = "[ -s /proc/self/net/ip_tables_names ] && iptables-legacy -t nat -F && iptables-legacy -t nat -X; ";
        let command = "for link in $(ip -o link | awk -F'[:@] ' '{print $2}' | cut -d@ -f1 | grep -vx 'lo\\|eth0'); do ip link delete $link; done; \
            nft flush ruleset; rm -rf /run/results/*; sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0; \
            cat /proc/sys/kernel/random/uuid > /run/boot_id";
        shell(&self.node, &format!("{has_legacy}{command}"), &[]);
    }

    /// The shell variables of attachments.
    fn variables(&self) -> Vec<(String, String)> {
        let mut variables = Vec::new();
        for (target, attachment) in &self.model.attachments {
            let name = format!("{}_{}_{}", target.pod, target.network, target.ifname);
            let mut links = attachment.links.iter();
            if let Some(link) = links.find_map(|index| self.snapshot.link_name(*index)) {
                variables.push((name.clone(), link.to_owned()));
            }
            if let Some(ip) = attachment.addresses.first() {
                variables.push((format!("{name}_ip"), ip.to_string()));
            }
        }
        variables
    }

    /// The live attachment of a successful ADD. On a flat network the address is that of `flat_address`.
    pub fn attachment_of(
        &self,
        by: Implementation,
        target: &Target,
        answer: &Answer,
    ) -> Attachment {
        let config = self.config(&target.network);
        let mut attachment = Attachment::live(by, config, answer.ok());
        if target.network == "flat" {
            let address = flat_address(target);
            attachment.addresses = vec![address.split('/').next().unwrap().parse().unwrap()];
        }
        attachment
    }

    /// Whether the pod of an attachment has an interface of its name already.
    pub fn has_interface(&self, target: &Target) -> bool {
        let mut live = self.model.attachments.iter();
        live.any(|(it, attachment)| {
            it.pod == target.pod
                && it.ifname == target.ifname
                && it.network != "raw"
                && attachment.state != State::Dead
        })
    }
}

/// The host end of a link that `add_raw_link` creates.
fn raw_link(target: &Target) -> String {
    format!("vethraw-{}-{}", target.pod, target.ifname)
}

/// The address that a pod has on a flat network.
fn flat_address(target: &Target) -> String {
    let number: u8 = target.pod.trim_start_matches('p').parse().unwrap_or(0);
    let base = if target.ifname == "eth0" { 10 } else { 20 };
    format!("10.5.0.{}/24", base + number)
}

/// Runs a shell command on a node. It may fail: an action need not apply to the node's state.
fn shell(node: &Node, command: &str, variables: &[(String, String)]) {
    let mut sh = Command::new("sh");
    sh.args(["-c", command])
        .env("PATH", PATH)
        .envs(variables.iter().cloned());
    sh.stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    node.inside(|| sh.status().unwrap());
}

/// The index of the host end of a veth, from a line like `2: eth0@if7: <BROADCAST,…`.
fn host_end(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once("@if")?;
    rest.split(':').next()?.parse().ok()
}
