//! Hot swap: attachments that one implementation added are checked and deleted by the other.
//! Each case has its own node. There the Go plugin first runs ADD, CHECK and DEL, to prove that the case is valid. Then
//! each implementation adds a pod, and the other one checks and deletes it.

use serde_json::{Value, json};

use crate::implementation::Implementation::{Gangplank, Go};
use crate::implementation::{
    Attachment, IPTABLES, Implementation, for_each_case, node, ready, remains,
};
use crate::support::{Answer, Network, Node, Pod};

const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
    Dual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Masquerade {
    None,
    IptablesNft,
    IptablesLegacy,
    Nftables,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InterfaceOption {
    Plain,
    Hairpin,
    Promisc,
    DefaultGateway,
    Mtu,
    RequestedAddress,
    TwoInterfaces,
    Layer2,
}

const FAMILIES: [Family; 3] = [Family::V4, Family::V6, Family::Dual];

const OPTIONS: [InterfaceOption; 8] = [
    InterfaceOption::Plain,
    InterfaceOption::Hairpin,
    InterfaceOption::Promisc,
    InterfaceOption::DefaultGateway,
    InterfaceOption::Mtu,
    InterfaceOption::RequestedAddress,
    InterfaceOption::TwoInterfaces,
    InterfaceOption::Layer2,
];

#[derive(Clone, Copy, Debug)]
struct Case {
    version: &'static str,
    family: Family,
    masquerade: Masquerade,
    option: InterfaceOption,
}

/// The implementations that add a pod, and that check and delete it.
struct Turn {
    pod: &'static str,
    add: Implementation,
    rest: Implementation,
}

/// The Go plugin alone.
const GO_ONLY: &[Turn] = &[Turn {
    pod: "go-only",
    add: Go,
    rest: Go,
}];

/// The swap in both directions.
const SWAP: &[Turn] = &[
    Turn {
        pod: "from-go",
        add: Go,
        rest: Gangplank,
    },
    Turn {
        pod: "to-go",
        add: Gangplank,
        rest: Go,
    },
];

/// For features that Debian's Go plugin does not have: version 1.1.0, and masquerade with nftables.
/// `tests/netns/masquerade/nftables.rs` removes rules of newer Go plugins.
const GANGPLANK_ONLY: &[Turn] = &[Turn {
    pod: "only",
    add: Gangplank,
    rest: Gangplank,
}];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Check,
    /// DEL of an interface of a pod, by its index.
    Del(usize),
    /// Nothing is left after the last DEL.
    NothingLeft,
}

/// A known failure of the Go plugin.
struct KnownFailure {
    why: &'static str,
    applies: fn(&Case, Step) -> bool,
}

const KNOWN_FAILURES: &[KnownFailure] = &[
    KnownFailure {
        why: "D8: it runs CHECK of an IPAM plugin that is not configured",
        applies: |case, step| case.option == InterfaceOption::Layer2 && step == Step::Check,
    },
    KnownFailure {
        why: "D2: both interfaces share a chain, which DEL of the first cannot delete because of the second's jump",
        applies: |case, step| case.shares_a_chain() && step == Step::Del(0),
    },
    KnownFailure {
        why: "D2: after the failure in IPv4, the IPv6 rule of the first interface is never removed",
        applies: |case, step| {
            let too_late = step == Step::Del(1) || step == Step::NothingLeft;
            case.shares_a_chain() && case.family == Family::Dual && too_late
        },
    },
];

impl Case {
    fn all(masquerade: Masquerade) -> Vec<Case> {
        let mut cases = Vec::new();
        for version in VERSIONS {
            for family in FAMILIES {
                for option in OPTIONS {
                    // A layer-2 network has neither address families nor masquerade.
                    let first = family == Family::V4 && masquerade == Masquerade::None;
                    if option != InterfaceOption::Layer2 || first {
                        cases.push(Case {
                            version,
                            family,
                            masquerade,
                            option,
                        });
                    }
                }
            }
        }
        cases
    }

    fn name(&self) -> String {
        let Case {
            version,
            family,
            masquerade,
            option,
        } = self;
        format!("{version}, {family:?}, masquerade {masquerade:?}, {option:?}")
    }

    fn shares_a_chain(&self) -> bool {
        self.option == InterfaceOption::TwoInterfaces && self.masquerade != Masquerade::None
    }

    /// Debian's Go plugin supports neither 1.1.0 nor the nftables backend.
    fn is_gangplank_only(&self) -> bool {
        self.version == "1.1.0" || self.masquerade == Masquerade::Nftables
    }

    fn has_gateway(&self) -> bool {
        !matches!(
            self.option,
            InterfaceOption::Plain | InterfaceOption::Layer2
        )
    }

    /// Whether the host reaches a pod immediately after gangplank's ADD. The IPv6 gateway of the Go plugin may still be
    /// tentative (D20).
    fn is_reachable(&self) -> bool {
        self.has_gateway() && (self.family != Family::V6 || self.is_gangplank_only())
    }

    /// The configuration for a pod, by its index.
    fn config(&self, n: usize) -> Value {
        let mut config = json!({
            "cniVersion": self.version,
            "name": "swap",
            "type": "bridge",
            "bridge": "br0",
        });
        let (v4, v6) = (
            [json!({ "subnet": "10.77.0.0/24" })],
            [json!({ "subnet": "fd77::/64" })],
        );
        let (ranges, requested) = match self.family {
            Family::V4 => (json!([v4]), json!([format!("10.77.0.5{n}")])),
            Family::V6 => (json!([v6]), json!([format!("fd77::5{n}")])),
            Family::Dual => (
                json!([v4, v6]),
                json!([format!("10.77.0.5{n}"), format!("fd77::5{n}")]),
            ),
        };
        if self.option != InterfaceOption::Layer2 {
            config["ipam"] = json!({ "type": "host-local", "ranges": ranges });
        }
        if self.has_gateway() {
            config["isGateway"] = true.into();
        }
        if self.masquerade != Masquerade::None {
            config["ipMasq"] = true.into();
        }
        if self.masquerade == Masquerade::Nftables {
            config["ipMasqBackend"] = "nftables".into();
        }
        match self.option {
            InterfaceOption::Plain | InterfaceOption::TwoInterfaces | InterfaceOption::Layer2 => {}
            InterfaceOption::Hairpin => config["hairpinMode"] = true.into(),
            InterfaceOption::Promisc => config["promiscMode"] = true.into(),
            InterfaceOption::DefaultGateway => config["isDefaultGateway"] = true.into(),
            InterfaceOption::Mtu => config["mtu"] = 1400.into(),
            InterfaceOption::RequestedAddress => config["args"]["cni"]["ips"] = requested,
        }
        config
    }

    fn known(&self, by: Implementation, step: Step) -> Option<&'static KnownFailure> {
        let applies = |known: &&KnownFailure| by == Go && (known.applies)(self, step);
        KNOWN_FAILURES.iter().find(applies)
    }

    /// Asserts that a step succeeded, or failed as known.
    #[track_caller]
    fn assert_step(&self, by: Implementation, step: Step, answer: &Answer) {
        match self.known(by, step) {
            None => assert_eq!(answer.code, Some(0), "{step:?} by {by:?}: {answer:?}"),
            Some(known) => assert_eq!(
                answer.code,
                Some(1),
                "{step:?} by {by:?} succeeded, though: {}",
                known.why
            ),
        }
    }

    fn run(&self) {
        let node = node();
        if self.masquerade == Masquerade::IptablesLegacy {
            node.use_iptables_variant("xtables-legacy-multi");
        } else {
            node.use_iptables_variant("xtables-nft-multi");
        }
        if self.is_gangplank_only() {
            self.run_turns(&node, GANGPLANK_ONLY, 0);
        } else {
            self.run_turns(&node, GO_ONLY, 0);
            self.run_turns(&node, SWAP, 1);
        }
    }

    fn run_turns(&self, node: &Node, turns: &[Turn], first: usize) {
        let pods: Vec<Pod> = turns.iter().map(|turn| node.pod(turn.pod)).collect();
        let mut attached: Vec<(&Turn, Vec<Attachment>)> = Vec::new();
        for (n, (turn, pod)) in turns.iter().zip(&pods).enumerate() {
            let config = self.config(first + n);
            let mut attachments = vec![Attachment::new(node, pod, &config)];
            if self.option == InterfaceOption::TwoInterfaces {
                attachments.push(Attachment::new(node, pod, &config).named("net1"));
            }
            for attachment in &mut attachments {
                let answer = attachment.try_add(turn.add);
                assert_eq!(answer.code, Some(0), "ADD by {:?}: {answer:?}", turn.add);
            }
            if turn.add == Gangplank && self.is_reachable() {
                node.reaches(&Network::address(&attachments[0].result));
            }
            attached.push((turn, attachments));
        }
        if self.version >= "0.4.0" {
            for (turn, attachments) in &attached {
                for attachment in attachments {
                    self.assert_step(turn.rest, Step::Check, &attachment.check(turn.rest));
                }
            }
        }
        for (turn, attachments) in &attached {
            for (n, attachment) in attachments.iter().enumerate() {
                self.assert_step(turn.rest, Step::Del(n), &attachment.del(turn.rest));
                assert!(attachment.pod.link(attachment.ifname).is_none());
            }
        }
        let go_turn = turns.iter().find(|turn| turn.rest == Go);
        let known = go_turn.and_then(|turn| self.known(turn.rest, Step::NothingLeft));
        let left = remains(node, "swap", "br0");
        assert_eq!(left.is_empty(), known.is_none(), "remaining: {left:?}");
        if known.is_some() {
            // gangplank's DEL removes what the Go plugin left.
            for attachment in attached.iter().flat_map(|(_, attachments)| attachments) {
                attachment.del(Gangplank).ok();
            }
            assert_eq!(
                remains(node, "swap", "br0"),
                [""; 0],
                "after DEL of gangplank"
            );
        }
    }
}

fn run_all(masquerade: Masquerade) {
    if ready(&[IPTABLES, &["ping", "nft"]].concat()) {
        for_each_case(&Case::all(masquerade), Case::name, Case::run);
    }
}

#[test]
fn hot_swap_without_masquerade() {
    run_all(Masquerade::None);
}

#[test]
fn hot_swap_with_iptables_nft() {
    run_all(Masquerade::IptablesNft);
}

#[test]
fn hot_swap_with_iptables_legacy() {
    run_all(Masquerade::IptablesLegacy);
}

#[test]
fn hot_swap_with_nftables() {
    run_all(Masquerade::Nftables);
}
