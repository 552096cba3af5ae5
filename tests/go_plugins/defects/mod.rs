//! Known defects of the Go plugins. Each test runs one scenario with both implementations: gangplank must pass it, and
//! the Go plugins must show the defect, which proves that the test detects it. "1.1.1" is Debian's version, "newer" are
//! later releases.
//!
//! - D1: masquerade and spoof check rules are not removed if netns or interface are already gone at DEL.
//! - D2: two interfaces of a container on one network share an iptables chain; DEL of one breaks the other and fails.
//! - D3: a failed ADD is not undone.
//! - D4: DEL removes the rules of the addresses found in the pod, not of those assigned by ADD. D4b: DEL with nftables
//!   leaves empty iptables tables. D4c: DEL fails if CNI_NETNS is no namespace. D4d: GC and STATUS do nothing.
//! - D5: ADD sets an all-zero MAC address on a bridge without ports and fails.
//! - D6: without a gateway, the MAC address of the bridge changes with its ports, and CHECK of older pods fails.
//! - D7: isDefaultGateway fails if IPAM returns a default route without gw.
//! - D8: CHECK fails on layer-2 networks, D8b: for routes in other tables, D8c: on a promiscuous bridge, D8d: for MAC
//!   addresses in upper case.
//! - D9: the plugin's own namespace is detected after all changes, and ADD prints two documents.
//! - D10: the second address of a family is masqueraded within its subnet. D10b: a bridge cannot be the gateway of
//!   several IPv4 subnets.
//! - D11: results of loopback have the wrong format in old versions.
//! - D12: route attributes are not set, and routes of link scope get a gateway.
//! - D13: null in lists crashes the plugin.
//! - D14: the host end has a queue length of 0.
//! - D15: invalid values are detected after changes were made.
//! - D16: a repeated ADD duplicates the jump rule of the spoof check.
//! - D17: host-local allocates gateways of other ranges, and a failed request releases existing leases.
//! - D18: without ip6tables, dual-stack masquerade fails after the IPv4 rules were added.
//! - D19: a delegate that cannot be executed (ETXTBSY) counts as a success.
//! - D20: the IPv6 gateway is still tentative when ADD returns.
//! - D21: a crash while a lease is written leaves an empty file that is never removed.
//! - D22: if writing the cursor fails, the lease remains. D23: several range sets are not allocated in one critical
//!   section.
//!
//! Chained plugins, compared with version 1.9.1 from Debian unstable:
//! - PD1: conditions of one network apply to all, with nftables.
//! - PD2: a repeated ADD duplicates the rules, with nftables.
//! - PD3: DEL without portMappings removes nothing. PD14: DEL of a bad configuration fails, PD15: with another backend
//!   it removes nothing, PD16: nor without ip6tables.
//! - PD4: rules of an earlier address remain in front of the new ones.
//! - PD5: a host port can be mapped to two containers.
//! - PD6: conntrack entries of UDP remain after DEL, and ADD deletes those of other addresses.
//! - PD7, PD8: with nftables masqAll is ignored, and neighbours are not masqueraded (`tests/netns/chain_packets`).
//! - PD9: route_localnet is never reset, and admits packets of others to 127.0.0.0/8.
//! - PD10: a mapping of ::1 is accepted and has no effect.
//! - PD11: DEL of one attachment removes the rules of others of the same container.
//! - PD12: invalid values are detected after changes were made. PD13: no address, no error.
//! - PD17: concurrent first ADDs duplicate shared rules. PD18: the marks of two networks mix. PD19: an ACCEPT in front
//!   of the masquerade rules stays there. PD20: CHECK ignores lost jumps. PD21: names of chains collide.
//! - PD22: one program per rule (`tests/netns`), no GC.
//! - FD1: an unknown backend is accepted. FD2: DEL without prevResult removes nothing. FD3: DEL removes rules of the
//!   address's next owner. FD4: isolation rules are never removed. FD5: CHECK creates chains. FD6: IPv4 needs ip6tables.
//! - FD7, FD8: `isolated` needs br_netfilter, and `open` accepts nothing if FORWARD drops (`tests/netns/chain_packets`).
//! - FD9: isolation rules behind the accept rules have no effect, and stay there. FD10: CHECK ignores them. FD12: rules
//!   of an earlier policy remain. FD13: an interface of the pod is taken for a bridge. FD14: invalid policies are
//!   detected after changes were made, and make DEL fail. FD16: concurrent first ADDs duplicate shared rules.
//! - firewalld (`tests/netns/chain_packets`): FD2, FD3 and FD10 with its zones. FD11: an error does not name the zone that
//!   has the address. FD15: DEL only uses the backend of the moment.
//! - TD1: sysctls in `args.cni` alone crash the plugin. TD2: sysctls are not restored. TD3: a repeated ADD overwrites the
//!   saved values. TD4: a failed ADD is not undone. TD5: the backup file remains. TD6: failures to restore are silent.
//! - TD7: directories without the permission to search. TD8: an unreadable allowlist fails every ADD. TD10: CHECK
//!   compares texts, and fails for ports of bridges. TD11: two values of one sysctl, in random order. TD12: a small MTU
//!   makes the kernel remove IPv6 addresses. TD9 is kept: an allowlist entry matches any part of a name.
//! - SD1: GATEWAY in CNI_ARGS does not apply to configured addresses. SD2: requested addresses have no gateway. SD3: CHECK
//!   succeeds if an address is missing. SD4: null routes and routes without a destination are printed.
//! - BD1: a large burst passes without a limit. BD2: the queue delays other flows. BD3: large numbers wrap. BD4: DEL leaves
//!   qdiscs, with which a running pod reaches nothing and a new ADD fails. BD5, BD12: attachments share an ifb. BD6: a
//!   burst smaller than a frame drops all frames. BD7: a rate below 1 byte per second is detected after changes were made.
//! - BD8: ADD fails if the interface has a clsact, and is not undone. BD9: DEL of invalid limits fails, no GC. BD10: without
//!   prevResult, the plugin crashes. BD11: CHECK ignores lost filters and qdiscs.
//! - ptp PD1: DEL without the namespace leaves link and rules. PD2: the route of an earlier owner of the address remains.
//!   PD3 to PD5: addresses without a gateway, with the full prefix length, or with a common gateway fail and leave a
//!   link. PD6, PD7: a failed ADD is not undone. PD8: the IPv6 gateway is still tentative when ADD returns. PD11: no GC. CHECK ignores the host end.
//!
//! D4d, D16 and D21 are tested in `tests/netns`; D14, D19, D22 and D23 cannot be provoked here.

mod addresses;
mod attach;
mod bandwidth;
mod chained;
mod check;
mod cleanup;
mod firewall;
mod portmap;
mod portmap_cleanup;
mod portmap_packets;
mod ptp;
mod routes;
mod static_addresses;
mod tuning;

use serde_json::{Value, json};

use crate::implementation::{Implementation, node};
use crate::support::{Answer, Network, Node, Pod, small_network};

/// A node with the plugins of one implementation.
struct Fixture {
    node: Node,
    implementation: Implementation,
}

impl Fixture {
    fn new(implementation: Implementation) -> Fixture {
        Fixture {
            node: node(),
            implementation,
        }
    }

    fn call(&self, verb: &str, pod: &Pod, config: &Value) -> Answer {
        self.implementation
            .call_for(&self.node, config)
            .verb(verb)
            .pod(pod)
            .run()
    }

    #[track_caller]
    fn add(&self, pod: &Pod, config: &Value) -> Value {
        self.call("ADD", pod, config).ok()
    }

    #[track_caller]
    fn del(&self, pod: &Pod, config: &Value) {
        self.call("DEL", pod, config).ok();
    }

    fn check(&self, pod: &Pod, config: &Value, result: &Value) -> Answer {
        let config = with(config, "prevResult", result.clone());
        self.call("CHECK", pod, &config)
    }

    fn rules(&self) -> Vec<String> {
        crate::implementation::nat_rules(&self.node)
    }

    /// The leased addresses of the network `small`.
    fn leases(&self) -> Vec<String> {
        let leases = crate::support::leases(&self.node, "small");
        leases.iter().map(ToString::to_string).collect()
    }
}

fn with(config: &Value, key: &str, value: impl Into<Value>) -> Value {
    let mut config = config.clone();
    config[key] = value.into();
    config
}

fn masquerade_network() -> Value {
    with(&small_network(), "ipMasq", true)
}

fn dual_stack_masquerade() -> Value {
    let mut config = masquerade_network();
    config["ipam"]["ranges"] = json!([[{ "subnet": "fd00:77::/64" }]]);
    config
}

fn succeeds(answer: &Answer) -> bool {
    answer.code == Some(0)
}

/// Whether the plugin did not crash and printed at most one valid document.
fn is_valid_answer(answer: &Answer) -> bool {
    let documents = serde_json::Deserializer::from_str(&answer.stdout).into_iter::<Value>();
    let documents = documents.collect::<Vec<_>>();
    matches!(answer.code, Some(0 | 1))
        && documents.len() <= 1
        && documents.iter().all(Result::is_ok)
}

fn host_link(result: &Value) -> String {
    Network::host_link(result)
}
