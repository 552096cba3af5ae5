//! Random histories, each determined by its seed.

use super::action::{Action, Implementation, NetnsArgument, Options, Target, Verb};
use super::networks::{BRIDGES, INTERFACES, NETWORKS, PODS};

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// True with probability 1/`times`.
    fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}

pub fn sequence(seed: u64, length: usize) -> Vec<Action> {
    let mut random = Random::new(seed);
    // Few networks per history, so that their pods interact.
    let networks = [
        random.pick(&NETWORKS),
        random.pick(&NETWORKS),
        random.pick(&NETWORKS[..4]),
    ];
    (0..length)
        .map(|_| action(&mut random, &networks))
        .collect()
}

fn action(random: &mut Random, networks: &[&str]) -> Action {
    let network = random.pick(networks);
    let by = match random.one_in(3) {
        true => Implementation::Go,
        false => Implementation::Gangplank,
    };
    match random.below(100) {
        0..30 => call(random, by, Verb::Add, network),
        30..47 => call(random, by, Verb::Del, network),
        47..51 => call(random, by, Verb::Check, network),
        51..54 => {
            let without = random.one_in(3).then(|| random.pick(&PODS).to_owned());
            Action::Gc(by, network.to_owned(), without)
        }
        54..56 => Action::Status(Implementation::Gangplank, network.to_owned()),
        56..65 => {
            let commands = [
                "reconcile",
                "reconcile",
                "doctor --fix",
                "doctor --fix",
                "doctor",
                "status",
            ];
            Action::Cli(random.pick(&commands).to_owned())
        }
        65..68 => configure(random, network),
        68..72 => Action::End(random.pick(&PODS).to_owned()),
        72..73 => Action::Reboot,
        _ => Action::Node(command(random, network)),
    }
}

fn target(random: &mut Random, network: &str) -> Target {
    let ifname = if random.one_in(6) {
        INTERFACES[1]
    } else {
        INTERFACES[0]
    };
    Target {
        pod: random.pick(&PODS).to_owned(),
        network: network.to_owned(),
        ifname: ifname.to_owned(),
    }
}

fn call(random: &mut Random, by: Implementation, verb: Verb, network: &str) -> Action {
    let mut options = Options::default();
    if verb == Verb::Del {
        options.netns = match random.below(8) {
            0 => NetnsArgument::Unset,
            1 => NetnsArgument::Missing,
            2 => NetnsArgument::Of(random.pick(&PODS).to_owned()),
            _ => NetnsArgument::Own,
        };
        options.without_prev_result = random.one_in(4);
        options.current_config = random.one_in(3);
    }
    if verb != Verb::Check && random.one_in(12) {
        options.kill_after = Some(500 + random.below(12_000) as u32);
    }
    Action::Call(by, verb, target(random, network), options)
}

fn configure(random: &mut Random, network: &str) -> Action {
    let (key, values): (&str, &[&str]) = match random.below(4) {
        0 | 1 => ("bridge", &["br9", "br0", "br1", "br3"]),
        2 => ("ipMasq", &["true", "false"]),
        _ => ("ipMasqBackend", &["nftables", "iptables"]),
    };
    // A network with only addresses and one with only links do not have these keys.
    let network = if ["raw", "flat"].contains(&network) {
        "gw"
    } else {
        network
    };
    Action::Config {
        network: network.to_owned(),
        key: key.to_owned(),
        value: random.pick(values).to_owned(),
    }
}

/// Shell commands of administrators and other tools: `BRIDGE`, `NETWORK`, `LEASES`, `VETH` and `N` are replaced.
const COMMANDS: &[&str] = &[
    // Bridges.
    "ip link add BRIDGE type bridge && ip link set BRIDGE up",
    "ip link add BRIDGE type bridge && ip link set BRIDGE up",
    "ip link add BRIDGE address 02:00:00:00:00:0N type bridge",
    "ip link delete BRIDGE",
    "ip link set BRIDGE down",
    "ip link set BRIDGE up",
    "ip link set BRIDGE down; ip link set BRIDGE name adm0; ip link set adm0 up",
    "ip link set adm0 down; ip link set adm0 name BRIDGE; ip link set BRIDGE up",
    "ip address add 172.16.N.1/24 dev BRIDGE",
    "ip address flush dev BRIDGE",
    "ip address add 10.5.0.1/24 dev br2",
    "ip link set BRIDGE mtu 1400",
    "ip link set BRIDGE address 02:00:00:00:0N:01",
    "ip link set BRIDGE type bridge stp_state 1",
    "ip link set BRIDGE type bridge ageing_time 100",
    "sysctl -qw net.ipv6.conf.BRIDGE.accept_ra=2",
    "sysctl -qw net.ipv4.conf.BRIDGE.rp_filter=1",
    // Links.
    "ip link delete $VETH",
    "ip link set $VETH down",
    "ip link set $VETH up",
    "ip link set $VETH nomaster",
    "ip link set $VETH master BRIDGE",
    "ip link set $VETH down; ip link set $VETH name renamedN; ip link set renamedN up",
    "ip link set $VETH type bridge_slave hairpin on",
    "ip link set $VETH mtu 1300",
    "ip link add fN type veth peer name gN; ip link set fN master BRIDGE up; ip link set gN up",
    "ip link add fN type veth peer name gN; ip address add 172.17.N.1/24 dev fN; ip link set fN up; ip link set gN up",
    "ip link set fN nomaster",
    "ip link delete fN",
    "ip link set fN address 00:00:00:00:00:0N",
    // Routes and parameters.
    "ip route add 172.18.N.0/24 via 192.0.2.2",
    "ip route add 172.19.N.0/24 dev BRIDGE",
    "ip route del 172.18.N.0/24",
    "ip rule add from 172.18.N.0/24 table 10N",
    "sysctl -qw net.ipv4.ip_forward=0",
    "sysctl -qw net.ipv6.conf.eth0.accept_ra=0 net.ipv6.conf.all.forwarding=1",
    // Rules.
    "iptables -t nat -F",
    "iptables -t nat -F POSTROUTING",
    "iptables -t nat -A POSTROUTING -s 172.18.N.0/24 -j MASQUERADE",
    "iptables -t nat -I POSTROUTING -s 172.20.N.0/24 -m comment --comment other -j RETURN",
    "iptables -t nat -N KUBE-SVC-N; iptables -t nat -A KUBE-SVC-N -j RETURN; iptables -t nat -I POSTROUTING -j KUBE-SVC-N",
    "iptables -N DOCKER-N; iptables -A FORWARD -j DOCKER-N",
    "ip6tables -t nat -A POSTROUTING -s fd99::/64 -j MASQUERADE",
    "iptables -P FORWARD DROP",
    "iptables -P FORWARD ACCEPT",
    "iptables-save > /run/backup/rules",
    "iptables-restore < /run/backup/rules",
    "nft list ruleset > /run/backup/nft",
    "nft flush ruleset; nft -f /run/backup/nft",
    "nft flush ruleset",
    "nft delete table inet gangplank",
    "nft add table inet otherN; nft add chain inet otherN c '{ type filter hook forward priority 0; }'; nft add rule inet otherN c counter",
    "nft add table bridge nat; nft add chain bridge nat otherN; nft add rule bridge nat otherN counter",
    "nft delete table inet otherN",
    "for p in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do ln -sfn /usr/sbin/xtables-legacy-multi /etc/alternatives/$p; done",
    "for p in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do ln -sfn /usr/sbin/xtables-nft-multi /etc/alternatives/$p; done",
    "for p in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do ln -sfn /nonexistent /etc/alternatives/$p; done",
    // Leases.
    "mkdir -p LEASES; printf 'other\\r\\neth0' > LEASES/SUBNET.N",
    "mkdir -p LEASES; printf 'other' > LEASES/SUBNET.N",
    "mkdir -p LEASES; : > LEASES/SUBNET.N",
    "truncate -s 0 LEASES/$VETH_ip",
    "truncate -s 1 LEASES/$VETH_ip",
    "rm LEASES/$VETH_ip",
    "rm LEASES/last_reserved_ip.0",
    "echo garbage > LEASES/last_reserved_ip.0",
    "rm -rf LEASES",
    "rm -rf /run/backup/NETWORK; cp -a LEASES /run/backup/NETWORK",
    "rm -rf /run/backup/NETWORK; cp -a LEASES /run/backup/NETWORK",
    "[ -d /run/backup/NETWORK ] && cp -a /run/backup/NETWORK/. LEASES/",
    "[ -d /run/backup/NETWORK ] && rm -rf LEASES && cp -a /run/backup/NETWORK LEASES",
    "touch --date=-2hours LEASES/*",
    "touch LEASES/*",
    // The node.
    "cat /proc/sys/kernel/random/uuid > /run/boot_id",
    "cat /proc/sys/kernel/random/uuid > /run/boot_id",
    ": > /run/boot_id",
    "echo 22222222-2222-4222-8222-222222222222 > /run/boot_id",
];

fn command(random: &mut Random, network: &str) -> String {
    let template = random.pick(COMMANDS);
    let config = super::networks::config(network);
    let own = config["bridge"].as_str().unwrap_or("br0").to_owned();
    let bridge = if random.one_in(3) {
        random.pick(&BRIDGES).to_owned()
    } else {
        own
    };
    let attachment = target(random, network);
    let veth = format!(
        "{}_{}_{}",
        attachment.pod, attachment.network, attachment.ifname
    );
    let subnet = match network {
        "nft" => "10.2.0",
        "dual" => "10.3.0",
        "nogw" => "10.4.0",
        "fwd" => "10.6.0",
        "raw" => "10.7.0",
        _ => "10.1.0",
    };
    let number = 2 + random.below(6);
    template
        .replace("BRIDGE", &bridge)
        .replace("LEASES", &format!("/var/lib/cni/networks/{network}"))
        .replace("NETWORK", network)
        .replace("SUBNET", subnet)
        .replace("VETH", &veth)
        .replace(".N", &format!(".{number}"))
        .replace("0N", &format!("0{number}"))
        .replace("fN", &format!("f{number}"))
        .replace("gN", &format!("g{number}"))
        .replace("renamedN", &format!("renamed{number}"))
        .replace("otherN", &format!("other{number}"))
        .replace("SVC-N", &format!("SVC-{number}"))
        .replace("DOCKER-N", &format!("DOCKER-{number}"))
}
