//! The hot-swap matrix: attachments that one party made are confirmed and taken down by the other.
//!
//! Each cell has a node of its own. There the reference first does all three deeds alone, so that the cell itself is
//! proven; then a pod of each party lives beside the other's, and they change hands.

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
enum Wish {
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

const WISHES: [Wish; 8] = [
    Wish::Plain,
    Wish::Hairpin,
    Wish::Promisc,
    Wish::DefaultGateway,
    Wish::Mtu,
    Wish::RequestedAddress,
    Wish::TwoInterfaces,
    Wish::Layer2,
];

#[derive(Clone, Copy, Debug)]
struct Cell {
    version: &'static str,
    family: Family,
    masquerade: Masquerade,
    wish: Wish,
}

/// Who adds a pod, who confirms it and who takes it down.
struct Turn {
    pod: &'static str,
    add: Implementation,
    rest: Implementation,
}

/// The reference alone: the proof of the cell.
const PROOF: &[Turn] = &[Turn {
    pod: "proof",
    add: Go,
    rest: Go,
}];

/// The swap, both ways at once.
const SWAP: &[Turn] = &[
    Turn {
        pod: "moves-in",
        add: Go,
        rest: Gangplank,
    },
    Turn {
        pod: "moves-out",
        add: Gangplank,
        rest: Go,
    },
];

/// For what Debian's reference does not know: version 1.1.0, and masquerade by nftables. What a newer reference writes
/// there is taken down by ours in `tests/netns/nftables.rs`.
const OURS_ALONE: &[Turn] = &[Turn {
    pod: "alone",
    add: Gangplank,
    rest: Gangplank,
}];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Check,
    /// DEL of the nth interface of a pod.
    Del(usize),
    /// That nothing is left after the last DEL.
    Leave,
}

/// Where the reference does worse, and ours deliberately does not.
struct Known {
    why: &'static str,
    applies: fn(&Cell, Deed) -> bool,
}

const KNOWN: &[Known] = &[
    Known {
        why: "D8: it runs the CHECK of an IPAM that is not there",
        applies: |cell, deed| cell.wish == Wish::Layer2 && deed == Deed::Check,
    },
    Known {
        why: "D2: both interfaces share a chain, which DEL of the first cannot delete: the second's jump is still there",
        applies: |cell, deed| cell.shares_a_chain() && deed == Deed::Del(0),
    },
    Known {
        why: "D2: after that failure in IPv4, the first interface's IPv6 rule was not looked at; it stays for ever",
        applies: |cell, deed| {
            let too_late = deed == Deed::Del(1) || deed == Deed::Leave;
            cell.shares_a_chain() && cell.family == Family::Dual && too_late
        },
    },
];

impl Cell {
    fn all(masquerade: Masquerade) -> Vec<Cell> {
        let mut cells = Vec::new();
        for version in VERSIONS {
            for family in FAMILIES {
                for wish in WISHES {
                    // Without addresses there is neither a family nor anything to masquerade.
                    let first = family == Family::V4 && masquerade == Masquerade::None;
                    if wish != Wish::Layer2 || first {
                        cells.push(Cell {
                            version,
                            family,
                            masquerade,
                            wish,
                        });
                    }
                }
            }
        }
        cells
    }

    fn name(&self) -> String {
        let Cell {
            version,
            family,
            masquerade,
            wish,
        } = self;
        format!("{version}, {family:?}, masquerade {masquerade:?}, {wish:?}")
    }

    fn shares_a_chain(&self) -> bool {
        self.wish == Wish::TwoInterfaces && self.masquerade != Masquerade::None
    }

    /// Debian's reference knows neither 1.1.0 nor the nftables backend.
    fn is_ours_alone(&self) -> bool {
        self.version == "1.1.0" || self.masquerade == Masquerade::Nftables
    }

    fn has_gateway(&self) -> bool {
        !matches!(self.wish, Wish::Plain | Wish::Layer2)
    }

    /// Whether the host reaches a pod as soon as ours has added it. Where the reference was first, its IPv6 gateway is
    /// still tentative (D20).
    fn can_be_reached(&self) -> bool {
        self.has_gateway() && (self.family != Family::V6 || self.is_ours_alone())
    }

    /// The configuration for the nth pod of the node.
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
        if self.wish != Wish::Layer2 {
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
        match self.wish {
            Wish::Plain | Wish::TwoInterfaces | Wish::Layer2 => {}
            Wish::Hairpin => config["hairpinMode"] = true.into(),
            Wish::Promisc => config["promiscMode"] = true.into(),
            Wish::DefaultGateway => config["isDefaultGateway"] = true.into(),
            Wish::Mtu => config["mtu"] = 1400.into(),
            Wish::RequestedAddress => config["args"]["cni"]["ips"] = requested,
        }
        config
    }

    fn known(&self, by: Implementation, deed: Deed) -> Option<&'static Known> {
        let applies = |known: &&Known| by == Go && (known.applies)(self, deed);
        KNOWN.iter().find(applies)
    }

    /// Fails unless a deed went well, or as it is known to go.
    #[track_caller]
    fn judge(&self, by: Implementation, deed: Deed, answer: &Answer) {
        match self.known(by, deed) {
            None => assert_eq!(answer.code, Some(0), "{deed:?} by {by:?}: {answer:?}"),
            Some(known) => assert_eq!(
                answer.code,
                Some(1),
                "{deed:?} by {by:?} went well, though: {}",
                known.why
            ),
        }
    }

    fn play(&self) {
        let node = node();
        if self.masquerade == Masquerade::IptablesLegacy {
            node.use_iptables_variant("xtables-legacy-multi");
        } else {
            node.use_iptables_variant("xtables-nft-multi");
        }
        if self.is_ours_alone() {
            self.play_round(&node, OURS_ALONE, 0);
        } else {
            self.play_round(&node, PROOF, 0);
            self.play_round(&node, SWAP, 1);
        }
    }

    fn play_round(&self, node: &Node, turns: &[Turn], first: usize) {
        let pods: Vec<Pod> = turns.iter().map(|turn| node.pod(turn.pod)).collect();
        let mut attached: Vec<(&Turn, Vec<Attachment>)> = Vec::new();
        for (n, (turn, pod)) in turns.iter().zip(&pods).enumerate() {
            let config = self.config(first + n);
            let mut attachments = vec![Attachment::new(node, pod, &config)];
            if self.wish == Wish::TwoInterfaces {
                attachments.push(Attachment::new(node, pod, &config).named("net1"));
            }
            for attachment in &mut attachments {
                let answer = attachment.try_add(turn.add);
                assert_eq!(answer.code, Some(0), "ADD by {:?}: {answer:?}", turn.add);
            }
            if turn.add == Gangplank && self.can_be_reached() {
                node.reaches(&Network::address(&attachments[0].result));
            }
            attached.push((turn, attachments));
        }
        if self.version >= "0.4.0" {
            for (turn, attachments) in &attached {
                for attachment in attachments {
                    self.judge(turn.rest, Deed::Check, &attachment.check(turn.rest));
                }
            }
        }
        for (turn, attachments) in &attached {
            for (n, attachment) in attachments.iter().enumerate() {
                self.judge(turn.rest, Deed::Del(n), &attachment.del(turn.rest));
                assert!(attachment.pod.link(attachment.ifname).is_none());
            }
        }
        let leaver = turns.iter().find(|turn| turn.rest == Go);
        let known = leaver.and_then(|turn| self.known(turn.rest, Deed::Leave));
        let left = remains(node, "swap", "br0");
        assert_eq!(left.is_empty(), known.is_none(), "is left: {left:?}");
        if known.is_some() {
            // What the reference leaves, a DEL by ours still finds.
            for attachment in attached.iter().flat_map(|(_, attachments)| attachments) {
                attachment.del(Gangplank).ok();
            }
            assert_eq!(remains(node, "swap", "br0"), [""; 0], "after ours");
        }
    }
}

fn play_all(masquerade: Masquerade) {
    if ready(&[IPTABLES, &["ping", "nft"]].concat()) {
        for_each_case(&Cell::all(masquerade), Cell::name, Cell::play);
    }
}

#[test]
fn without_masquerade() {
    play_all(Masquerade::None);
}

#[test]
fn with_masquerade_by_iptables_nft() {
    play_all(Masquerade::IptablesNft);
}

#[test]
fn with_masquerade_by_iptables_legacy() {
    play_all(Masquerade::IptablesLegacy);
}

#[test]
fn with_masquerade_by_nftables() {
    play_all(Masquerade::Nftables);
}
