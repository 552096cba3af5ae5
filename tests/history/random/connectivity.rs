//! Invariants 1 and 4 of a history: connectivity, and addresses that are assigned once.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::action::{Action, Target, Verb};
use super::history::History;
use super::model::Attachment;
use super::networks;
use super::traffic::{Edge, PATIENT_ROUNDS, Peer, ROUNDS};
use super::world::Outcome;

impl History {
    /// Invariant 4.
    pub(super) fn check_addresses(&mut self, action: &Action) {
        let twice = self.duplicate_addresses();
        let with_leases = twice.iter().filter(|(_, _, is_excused)| !is_excused);
        let text: Vec<String> = with_leases
            .map(|(one, other, _)| format!("{one} and {other}"))
            .collect();
        if !text.is_empty() && action.is_gangplank() {
            self.note(
                "an address assigned twice",
                text.join(", "),
                text.join("\n"),
                true,
            );
        }
    }

    /// Pairs of live attachments with the same address, and whether one of them had lost its lease.
    fn duplicate_addresses(&self) -> Vec<(Target, Target, bool)> {
        let live: Vec<(&Target, &Attachment)> = self.world.model.live().collect();
        let mut duplicate_addresses = Vec::new();
        for (at, (one, attachment)) in live.iter().enumerate() {
            for (other, its) in &live[at + 1..] {
                let is_same = |ip: &IpAddr| its.addresses.contains(ip);
                if one.network == other.network && attachment.addresses.iter().any(is_same) {
                    let is_excused = attachment.lost_lease || its.lost_lease;
                    duplicate_addresses.push(((*one).clone(), (*other).clone(), is_excused));
                }
            }
        }
        duplicate_addresses
    }

    /// Invariant 1.
    pub(super) fn check_connectivity(
        &mut self,
        action: &Action,
        outcome: &Outcome,
        deleted: Option<&Attachment>,
    ) {
        let duplicate_addresses = self.duplicate_addresses();
        let model = &self.world.model;
        // A repeated ADD fails. Without a lease the container looks new, so the undo removes what the first ADD
        // created.
        let without_lease = match action {
            Action::Call(_, Verb::Add, target, _) => model.attachments.get(target),
            _ => None,
        };
        let is_taken_for_new = |edge: &Edge| {
            let is_lost = without_lease.is_some_and(|attachment| attachment.lost_lease);
            is_lost && matches!(action, Action::Call(_, _, target, _) if edge.touches(target))
        };
        // If a pod had two interfaces on one bridge, either may have answered ARP requests for the other's address, so
        // neighbours may have cached the MAC address of the deleted one.
        let bridge = |it: &Target| &self.world.config(&it.network)["bridge"];
        let is_twin = |it: &Target| {
            matches!(action, Action::Call(_, Verb::Del, target, _)
                if it.pod == target.pod && bridge(it) == bridge(target) && it != target)
        };
        let has_lost_twin = |edge: &Edge| {
            let is_to_twin = matches!(&edge.to, Peer::Pod(to) if is_twin(to));
            let is_deleted = deleted.is_some()
                || matches!(action, Action::Call(_, _, target, _)
                    if self.possible_leftovers.contains(&(target.pod.clone(), target.ifname.clone())));
            is_deleted && (is_twin(&edge.from) || is_to_twin)
        };
        // An address without a lease is assigned again, and entries keyed by address are replaced by those of the new
        // attachment.
        let is_reassigned = |edge: &Edge| {
            self.has_lost_lease(&edge.from)
                && matches!(action, Action::Call(_, Verb::Add, target, _)
                    if target.network == edge.from.network)
        };
        // The default route of a pod is deleted with its interface, also if the pod has other networks.
        let has_lost_route = |edge: &Edge| {
            edge.to == Peer::Outside
                && matches!(action, Action::Call(_, Verb::Del, target, _)
                    if edge.from.pod == target.pod && edge.from != *target)
        };
        // Rules of iptables belong to a container: only leases show that another of its interfaces needs them.
        let has_unknown_rules = |edge: &Edge| {
            edge.to == Peer::Outside && is_twin(&edge.from) && self.has_lost_lease(&edge.from)
        };
        // The deleted attachment had the same address, so entries keyed by address were removed.
        let has_doubled_address = |target: &Target| {
            let its = model.attachments.get(target).map(|it| &it.addresses);
            let is_same = |ip: &IpAddr| its.is_some_and(|its| its.contains(ip));
            deleted.is_some_and(|deleted| deleted.addresses.iter().any(is_same))
        };
        let is_expected = |edge: &&Edge| {
            let lives = |target: &Target| model.lives(target);
            let both_live = lives(&edge.from)
                && match &edge.to {
                    Peer::Pod(to) => lives(to),
                    _ => true,
                };
            let has_duplicate = duplicate_addresses
                .iter()
                .any(|(one, other, _)| edge.touches(one) || edge.touches(other))
                || has_doubled_address(&edge.from);
            let is_excused = is_taken_for_new(edge)
                || has_lost_twin(edge)
                || has_unknown_rules(edge)
                || has_lost_route(edge)
                || is_reassigned(edge);
            // Either of two interfaces on one bridge may answer, and this may change.
            let has_two = |it: &Target| {
                let mut others = model.attachments.keys();
                others
                    .any(|other| other.pod == it.pod && other != it && bridge(other) == bridge(it))
            };
            let is_ambiguous =
                has_two(&edge.from) || matches!(&edge.to, Peer::Pod(to) if has_two(to));
            both_live && !has_duplicate && !is_excused && !is_ambiguous
        };
        let expected_before: BTreeSet<Edge> = self
            .world
            .edges
            .iter()
            .filter(is_expected)
            .cloned()
            .collect();
        // The rules of an attachment are recreated from its lease.
        let has_leases = |edge: &&Edge| !self.has_lost_lease(&edge.from);
        let to_restore: BTreeSet<Edge> = match action {
            Action::Cli(words) if words == "reconcile" && outcome.succeeded() => {
                let restorable = self.restorable.iter().filter(is_expected);
                let restorable = restorable.filter(|edge| !self.has_other_bridge(&edge.from));
                // Of several networks one has the pod's default route.
                let is_only = |target: &Target| {
                    let mut all = model.attachments.keys();
                    !all.any(|it| it.pod == target.pod && it != target)
                };
                let is_masqueraded = |edge: &&Edge| {
                    let config = self.world.config(&edge.from.network);
                    config["ipMasq"] == true && is_only(&edge.from)
                };
                let restorable =
                    restorable.filter(|edge| edge.to != Peer::Outside || is_masqueraded(edge));
                restorable.filter(has_leases).cloned().collect()
            }
            _ => BTreeSet::new(),
        };
        let new = self.new_edges(action, outcome);
        let new: BTreeSet<Edge> = new.iter().filter(is_expected).cloned().collect();
        let expected = expected_before
            .iter()
            .chain(&to_restore)
            .chain(&new)
            .cloned()
            .collect();
        let rounds = match action.is_gangplank() {
            true => PATIENT_ROUNDS,
            false => ROUNDS,
        };
        let answered = self.world.measure(&expected, rounds);
        let missing = |edges: &BTreeSet<Edge>| -> Vec<Edge> {
            edges.difference(&answered).cloned().collect()
        };
        let (lost, unrestored, unconnected) = (
            missing(&expected_before),
            missing(&to_restore),
            missing(&new),
        );
        self.update_restorable(action, &lost, &answered);
        self.world.edges = answered;
        // Restored rules may belong to an attachment that had the address before.
        if matches!(action, Action::Node(command) if command.contains("-f /run/backup/nft")) {
            self.world.edges.retain(|edge| edge.to != Peer::Outside);
        }
        if !action.is_gangplank() {
            return;
        }
        let is_add = matches!(action, Action::Call(_, Verb::Add, ..));
        for edge in lost {
            self.note(
                &format!("{} lost connectivity", action.name()),
                edge.to_string(),
                edge.to_string(),
                is_add,
            );
        }
        for edge in unrestored {
            self.note("not reconciled", edge.to_string(), edge.to_string(), false);
        }
        for edge in unconnected {
            self.note(
                "not connected after ADD",
                edge.to_string(),
                edge.to_string(),
                true,
            );
        }
    }

    /// Whether the gateway has another MAC address than at the ADD, because the configuration names another bridge or
    /// an ADD created the bridge again. The container uses the old address for as long as its neighbour entry is
    /// reachable (15 to 45 seconds).
    fn has_other_bridge(&self, target: &Target) -> bool {
        let Some(attachment) = self.world.model.attachments.get(target) else {
            return false;
        };
        let present = &self.world.config(&target.network)["bridge"];
        let then = attachment.result["interfaces"][0]["mac"].as_str();
        let now = present
            .as_str()
            .and_then(|name| self.world.snapshot.mac_of(name));
        attachment.config["bridge"] != *present || now != then
    }

    fn has_lost_lease(&self, target: &Target) -> bool {
        let attachment = self.world.model.attachments.get(target);
        attachment.is_some_and(|it| it.lost_lease)
    }

    /// Connectivity that reconcile restores is expected after reconcile, unless a foreign action that it does not
    /// repair came in between.
    fn update_restorable(&mut self, action: &Action, lost: &[Edge], answered: &BTreeSet<Edge>) {
        self.restorable.retain(|edge| !answered.contains(edge));
        // With STP, a port forwards no frames for 30 seconds after it came up.
        let mut links = self.world.snapshot.facts.values();
        if links.any(|fact| fact.value.contains(" stp=1 ")) {
            self.restorable.clear();
            return;
        }
        match action {
            Action::Node(command) if is_reconcilable(command) => {
                self.restorable.extend(lost.iter().cloned())
            }
            Action::Node(_) | Action::Config { .. } | Action::Reboot => self.restorable.clear(),
            Action::Cli(words) if words == "reconcile" => self.restorable.clear(),
            _ => {}
        }
    }

    /// The connectivity that a new attachment should have.
    fn new_edges(&self, action: &Action, outcome: &Outcome) -> BTreeSet<Edge> {
        let mut edges = BTreeSet::new();
        let Action::Call(_, Verb::Add, target, _) = action else {
            return edges;
        };
        let Some(attachment) = self
            .world
            .model
            .attachments
            .get(target)
            .filter(|_| outcome.succeeded())
        else {
            return edges;
        };
        let bridge = self.world.snapshot.bridge_of(&attachment.links);
        let name = bridge.unwrap_or_default().trim_matches('"');
        if self.world.snapshot.has_spanning_tree(name) {
            return edges;
        }
        for is_v6 in attachment.addresses.iter().map(IpAddr::is_ipv6) {
            let edge = |from: &Target, to: Peer| Edge {
                from: from.clone(),
                to,
                is_v6,
            };
            // A host with the gateway's subnet on two bridges replies through one of them.
            let is_ambiguous = |gateway: &IpAddr| self.world.snapshot.links_with(*gateway) > 1;
            let is_reachable = !attachment.gateways.iter().any(is_ambiguous);
            if !attachment.gateways.is_empty() && is_reachable {
                edges.insert(edge(target, Peer::Gateway));
            }
            // Only one network has the pod's default route.
            let mut live = self.world.model.live();
            let is_only = !live.any(|(it, _)| it.pod == target.pod && it != target);
            if attachment.is_masqueraded()
                && is_reachable
                && !self.world.snapshot.drops_forwarded()
                && is_only
                && networks::has_default_route(&attachment.config)
            {
                edges.insert(edge(target, Peer::Outside));
            }
            // With two interfaces in one subnet, the interface that replies is undefined.
            let is_alone = |it: &Target| {
                let mut all = self.world.model.live();
                !all.any(|(other, _)| {
                    other.pod == it.pod && other != it && other.network == it.network
                })
            };
            // With br_netfilter, packets between ports of a bridge traverse FORWARD too. The policy is set for IPv4
            // only.
            if !is_v6 && self.world.snapshot.drops_forwarded() {
                continue;
            }
            let live = self.world.model.live();
            let peers = live.filter(|(it, _)| it.network == target.network && *it != target);
            let peers = peers.filter(|(it, _)| is_alone(it) && is_alone(target));
            for (peer, its) in peers {
                // A peer whose link an administrator broke has no connectivity.
                let mut edges_before = self.world.edges.iter();
                let has_any = edges_before.any(|it| it.from == *peer && it.is_v6 == is_v6);
                if has_any && self.world.snapshot.bridge_of(&its.links) == bridge {
                    edges.insert(edge(target, Peer::Pod(peer.clone())));
                    edges.insert(edge(peer, Peer::Pod(target.clone())));
                }
            }
        }
        edges
    }
}

/// Whether `reconcile` repairs the effect of a shell command: on the bridge, its state and gateway address, its ports,
/// forwarding, and rules.
fn is_reconcilable(command: &str) -> bool {
    let reconcilable = [
        "ip link delete br",
        "ip link set br0 down",
        "ip link set br1 down",
        "ip link set br3 down",
        "ip address flush dev br",
        "iptables -t nat -F",
        "nft flush ruleset",
        "nft delete table inet gangplank",
        "sysctl -qw net.ipv4.ip_forward=0",
    ];
    // A renamed bridge no longer belongs to the network, though its ports remain. Restored rules may drop packets.
    if command.contains(" name ") || command.contains("nft -f ") {
        return false;
    }
    let is_port = command.starts_with("ip link set $")
        && (command.ends_with(" down") || command.ends_with(" nomaster"));
    is_port || reconcilable.iter().any(|begin| command.starts_with(begin))
}
