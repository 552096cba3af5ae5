//! One history: actions carried out on a fresh node, with the invariants checked after each.
//!
//! 1. A call of ours takes no connectivity from a living attachment, and a new attachment has the connectivity that the
//!    Go plugin gives it. What a foreign action takes away is not expected afterwards; what `reconcile` documents to
//!    restore is expected after it.
//! 2. A call of ours changes nothing but what [`Effects`] allows.
//! 3. After a successful DEL or GC of ours nothing of the attachment remains.
//! 4. No address is assigned twice on a network.
//! 5. Calls are answered in time, with valid JSON; DEL, GC and STATUS succeed.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use super::action::{Action, Implementation, NetnsArgument, Target, Verb};
use super::effects::{Effects, bridges_of};
use super::model::{Attachment, State};
use super::snapshot::{Owner, Snapshot, Subject};
use super::traffic::{Edge, Peer};
use super::world::{Outcome, World};

/// The longest that a call may take; nothing in these histories holds a lock for longer than another call.
const LIMIT: Duration = Duration::from_secs(12);

/// A violation of an invariant, unless the Go plugins do the same at the same step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub step: usize,
    /// Which invariant, without names.
    pub kind: String,
    /// What it is about, with names that another implementation has as well.
    pub subject: String,
    /// For people.
    pub text: String,
    /// Whether the finding is none where the Go plugins have it, too.
    pub is_excused_by_go: bool,
}

/// A node with its history so far.
pub struct History {
    world: World,
    findings: Vec<Finding>,
    step: usize,
    /// Connectivity lost to foreign actions since everything was as it should be, which `reconcile` restores.
    debts: BTreeSet<Edge>,
    /// Interfaces of pods that a killed or incomplete call may have left in the pod.
    unclean: BTreeSet<(String, String)>,
}

/// Carries out a sequence on a fresh node; what was found.
pub fn run(actions: &[Action], ours: Implementation) -> Vec<Finding> {
    let mut history = History {
        world: World::new(ours),
        findings: Vec::new(),
        step: 0,
        debts: BTreeSet::new(),
        unclean: BTreeSet::new(),
    };
    for action in actions {
        history.next(action);
        history.step += 1;
    }
    history.findings
}

impl History {
    fn find(&mut self, kind: &str, subject: String, text: String) {
        self.note(kind, subject, text, false);
    }

    fn note(&mut self, kind: &str, subject: String, text: String, is_excused_by_go: bool) {
        self.findings.push(Finding {
            step: self.step,
            kind: kind.to_owned(),
            subject,
            text,
            is_excused_by_go,
        });
    }

    fn next(&mut self, action: &Action) {
        let outcome = self.world.act(action);
        let after = self.world.observe();
        let before = std::mem::replace(&mut self.world.snapshot, after);
        // The permissions are about what was known before the call.
        if action.is_ours() && self.world.ours == Implementation::Ours {
            self.check_changes(action, &outcome, &before);
        }
        if action.is_ours() {
            self.check_answer(action, &outcome, &before);
            self.check_advertisements(action, &outcome);
        }
        let gone = self.follow(action, &outcome, &before);
        if !action.is_ours() {
            self.world.model.note_lost_leases(&self.world.snapshot);
        }
        if action.is_ours() && outcome.succeeded() && self.world.ours == Implementation::Ours {
            self.check_remains(action, gone.as_ref());
        }
        self.check_addresses(action);
        self.check_connectivity(action, &outcome);
    }

    /// Invariant 2.
    fn check_changes(&mut self, action: &Action, outcome: &Outcome, before: &Snapshot) {
        let (network, target) = match action {
            Action::Call(_, _, target, _) => (Some(&target.network), Some(target)),
            Action::Gc(_, network, _) | Action::Status(_, network) => (Some(network), None),
            _ => (None, None),
        };
        let model = &self.world.model;
        let bridges = network.map(|it| bridges_of(model, self.world.config(it), target));
        let effects = Effects {
            action,
            bridges: bridges.unwrap_or_default(),
            model,
            is_refused: !outcome.succeeded() && !outcome.was_killed(),
        };
        let changes = before.changes(&self.world.snapshot);
        let wrong = changes.iter().filter(|change| !effects.allow(change));
        let wrong: Vec<(String, String)> = wrong
            .map(|change| {
                let kind = format!("{} changed {}", action.name(), change.kind());
                (kind, change.text())
            })
            .collect();
        for (kind, text) in wrong {
            self.find(&kind, String::new(), text);
        }
    }

    /// Invariant 5.
    fn check_answer(&mut self, action: &Action, outcome: &Outcome, before: &Snapshot) {
        let Some(answer) = &outcome.answer else {
            return;
        };
        if outcome.took > LIMIT {
            self.find(
                "took too long",
                String::new(),
                format!("{:?}", outcome.took),
            );
        }
        if outcome.was_killed() {
            if !matches!(action, Action::Call(_, _, _, options) if options.kill_after.is_some()) {
                self.find("ended by a signal", String::new(), format!("{answer:?}"));
            }
            return;
        }
        let is_cli = matches!(action, Action::Cli(_));
        let is_json = serde_json::from_str::<serde_json::Value>(&answer.stdout).is_ok();
        if !is_cli && !answer.stdout.is_empty() && !is_json {
            self.find("not valid JSON", String::new(), format!("{answer:?}"));
        }
        if outcome.succeeded() {
            return;
        }
        let text = format!("{answer:?}");
        match action {
            Action::Call(_, Verb::Add, target, _) => {
                if !self.must_be_refused(target, before) {
                    self.note("ADD failed", target.to_string(), text, true);
                }
            }
            Action::Call(_, Verb::Check, target, options) => {
                let is_usual = options.netns == NetnsArgument::Own && !options.without_prev_result;
                if is_usual && self.world.model.lives(target) {
                    self.note("CHECK failed", target.to_string(), text, true);
                }
            }
            // Nothing but the program of that variant removes legacy rules.
            Action::Call(_, Verb::Del, ..) if self.has_only_legacy_rules() => {}
            Action::Call(_, Verb::Del, ..) => self.note("DEL failed", String::new(), text, false),
            Action::Gc(..) => self.note("GC failed", String::new(), text, false),
            Action::Status(..) => self.note("STATUS failed", String::new(), text, false),
            // Exit status 3 of `doctor` is that of findings, 1 of `reconcile` that something could not be repaired.
            Action::Cli(_) if [Some(3), Some(1)].contains(&answer.code) => {}
            _ => self.note("the command failed", String::new(), text, false),
        }
    }

    fn has_only_legacy_rules(&self) -> bool {
        let has_program = || fs::exists("/etc/alternatives/iptables").unwrap_or(false);
        let mut keys = self.world.snapshot.facts.keys();
        let has_legacy = keys.any(|key| key.starts_with("iptables-legacy nat"));
        has_legacy && !self.world.node.inside(has_program)
    }

    /// A router advertisement from a pod must not give the node a default route.
    fn check_advertisements(&mut self, action: &Action, outcome: &Outcome) {
        let Action::Call(_, Verb::Add, target, _) = action else {
            return;
        };
        let bridge = self.world.config(&target.network)["bridge"].as_str();
        let parameter = format!("ipv6/conf/{}/accept_ra", bridge.unwrap_or_default());
        let fact = self
            .world
            .snapshot
            .facts
            .get(&format!("parameter {parameter}"));
        let value = fact.map_or("0", |fact| &fact.value).to_owned();
        if outcome.succeeded() && value != "0" {
            let text = format!("{parameter} is {value}");
            self.note(
                "router advertisements accepted after ADD",
                target.to_string(),
                text,
                true,
            );
        }
    }

    /// Whether an ADD repeats what there is already.
    fn must_be_refused(&self, target: &Target, before: &Snapshot) -> bool {
        let has_lease = before.facts.values().any(|fact| match &fact.subject {
            Subject::Lease { network, owner } => {
                *network == target.network
                    && owner.as_ref().is_some_and(|owner| owner.may_be(target))
            }
            _ => false,
        });
        let interface = (target.pod.clone(), target.ifname.clone());
        has_lease || self.world.has_interface(target) || self.unclean.contains(&interface)
    }

    /// Brings the model up to date; the attachment that was deleted.
    fn follow(
        &mut self,
        action: &Action,
        outcome: &Outcome,
        before: &Snapshot,
    ) -> Option<Attachment> {
        match action {
            Action::Call(by, verb, target, options) => {
                if options.kill_after.is_some() || options.netns != NetnsArgument::Own {
                    self.unclean
                        .insert((target.pod.clone(), target.ifname.clone()));
                }
                match verb {
                    Verb::Add => self.follow_add(*by, target, outcome, before),
                    Verb::Del => return self.follow_del(target, outcome),
                    Verb::Check => {}
                }
            }
            Action::Gc(_, network, Some(pod)) if outcome.succeeded() => {
                self.follow_gc(network, pod)
            }
            Action::End(pod) => self.unclean.retain(|(it, _)| it != pod),
            Action::Reboot => self.unclean.clear(),
            _ => {}
        }
        None
    }

    fn follow_add(
        &mut self,
        by: Implementation,
        target: &Target,
        outcome: &Outcome,
        before: &Snapshot,
    ) {
        let mut attachment = match &outcome.answer {
            Some(answer) if outcome.succeeded() => self.world.attachment_of(by, target, answer),
            _ if outcome.was_killed() && !self.world.model.lives(target) => {
                Attachment::unclear(by, self.world.config(&target.network))
            }
            _ => return,
        };
        let new = self
            .world
            .snapshot
            .facts
            .values()
            .filter_map(|fact| match &fact.subject {
                Subject::Link { index, name } if name.starts_with("veth") => Some(*index),
                _ => None,
            });
        attachment.links = new
            .filter(|index| before.link_name(*index).is_none())
            .collect();
        self.world
            .model
            .attachments
            .insert(target.clone(), attachment);
        self.world.remember(target);
    }

    /// A GC without a pod in its list may detach it, or leave it as it is.
    fn follow_gc(&mut self, network: &str, pod: &str) {
        let all = self.world.model.attachments.keys();
        let dropped = all.filter(|it| it.network == network && it.pod == pod);
        for target in dropped.cloned().collect::<Vec<Target>>() {
            let attachment = self.world.model.attachments.remove(&target);
            let attachment = attachment.expect("it is one of them");
            self.unclean
                .insert((target.pod.clone(), target.ifname.clone()));
            self.world.remember(&target);
            let snapshot = &self.world.snapshot;
            let has_link = attachment
                .links
                .iter()
                .any(|index| snapshot.link_name(*index).is_some());
            let has_lease = |ip: &IpAddr| snapshot.lease(network, &ip.to_string()).is_some();
            let is_freed = !attachment.addresses.iter().all(has_lease) && !attachment.lost_lease;
            if has_link && is_freed && target.network != "flat" && attachment.state == State::Living
            {
                self.find(
                    "GC freed an address that a link still has",
                    target.to_string(),
                    target.to_string(),
                );
            }
            if has_link {
                let attachment = Attachment {
                    state: State::Unclear,
                    ..attachment
                };
                self.world.model.attachments.insert(target, attachment);
            }
        }
    }

    fn follow_del(&mut self, target: &Target, outcome: &Outcome) -> Option<Attachment> {
        if !outcome.succeeded() {
            if let Some(attachment) = self.world.model.attachments.get_mut(target) {
                attachment.state = State::Unclear;
            }
            return None;
        }
        let gone = self.world.model.attachments.remove(target);
        self.world.remember(target);
        gone
    }

    /// Invariant 3. What a Go plugin was to remove may remain.
    fn check_remains(&mut self, action: &Action, gone: Option<&Attachment>) {
        let mut remains: Vec<String> = Vec::new();
        match action {
            Action::Call(_, Verb::Del, target, options) => {
                remains.extend(self.remains(target));
                for index in gone.iter().flat_map(|attachment| &attachment.links) {
                    let Some(name) = self.world.snapshot.link_name(*index) else {
                        continue;
                    };
                    // Nothing but the pod's end leads to a link of another name.
                    let is_found_by_name = gone
                        .is_some_and(|it| it.made_by == Implementation::Ours)
                        && name.starts_with("veth");
                    if is_found_by_name || options.netns == NetnsArgument::Own {
                        remains.push(format!("link {name}"));
                    }
                }
            }
            Action::Gc(_, network, _) => {
                let all = self.world.model.attachments.iter();
                let dead = all.filter(|(it, attachment)| {
                    it.network == *network && attachment.state == State::Dead
                });
                remains = dead.flat_map(|(target, _)| self.remains(target)).collect();
            }
            _ => {}
        }
        if !remains.is_empty() {
            self.find(
                &format!("{} left something behind", action.name()),
                String::new(),
                remains.join("\n"),
            );
        }
    }

    fn remains(&self, target: &Target) -> Vec<String> {
        let is_left = |owner: &Owner| {
            let mut others = self
                .world
                .model
                .attachments
                .iter()
                .filter(|(it, attachment)| {
                    let is_other = *it != target && attachment.state != State::Dead;
                    is_other && owner.may_be(it)
                });
            owner.may_be(target) && others.next().is_none()
        };
        let facts = self.world.snapshot.facts.iter();
        let left = facts.filter(|(_, fact)| match &fact.subject {
            Subject::Rule(owner) => is_left(owner),
            Subject::Lease { owner, .. } => owner.as_ref().is_some_and(is_left),
            _ => false,
        });
        left.map(|(key, _)| key.clone()).collect()
    }

    /// Invariant 4.
    fn check_addresses(&mut self, action: &Action) {
        let twice = self.doubled();
        let with_leases = twice.iter().filter(|(_, _, is_excused)| !is_excused);
        let text: Vec<String> = with_leases
            .map(|(one, other, _)| format!("{one} and {other}"))
            .collect();
        if !text.is_empty() && action.is_ours() {
            self.note(
                "an address assigned twice",
                text.join(", "),
                text.join("\n"),
                true,
            );
        }
    }

    /// Pairs of living attachments with the same address, and whether one of them had lost its lease.
    fn doubled(&self) -> Vec<(Target, Target, bool)> {
        let living: Vec<(&Target, &Attachment)> = self.world.model.living().collect();
        let mut doubled = Vec::new();
        for (at, (one, attachment)) in living.iter().enumerate() {
            for (other, its) in &living[at + 1..] {
                let is_same = |ip: &IpAddr| its.addresses.contains(ip);
                if one.network == other.network && attachment.addresses.iter().any(is_same) {
                    let is_excused = attachment.lost_lease || its.lost_lease;
                    doubled.push(((*one).clone(), (*other).clone(), is_excused));
                }
            }
        }
        doubled
    }

    /// Invariant 1.
    fn check_connectivity(&mut self, action: &Action, outcome: &Outcome) {
        let doubled = self.doubled();
        let model = &self.world.model;
        let is_expected = |edge: &&Edge| {
            let lives = |target: &Target| model.lives(target);
            let both_live = lives(&edge.from)
                && match &edge.to {
                    Peer::Pod(to) => lives(to),
                    _ => true,
                };
            let is_doubled = doubled
                .iter()
                .any(|(one, other, _)| edge.touches(one) || edge.touches(other));
            both_live && !is_doubled
        };
        let kept: BTreeSet<Edge> = self
            .world
            .edges
            .iter()
            .filter(is_expected)
            .cloned()
            .collect();
        let owed: BTreeSet<Edge> = match action {
            Action::Cli(words) if words == "reconcile" && outcome.succeeded() => {
                self.debts.iter().filter(is_expected).cloned().collect()
            }
            _ => BTreeSet::new(),
        };
        let new = self.new_edges(action, outcome);
        let new: BTreeSet<Edge> = new.iter().filter(is_expected).cloned().collect();
        let expected = kept.iter().chain(&owed).chain(&new).cloned().collect();
        let answered = self.world.measure(&expected);
        let missing = |edges: &BTreeSet<Edge>| -> Vec<Edge> {
            edges.difference(&answered).cloned().collect()
        };
        let (lost, unpaid, unconnected) = (missing(&kept), missing(&owed), missing(&new));
        self.settle_debts(action, &lost, &answered);
        self.world.edges = answered;
        if !action.is_ours() {
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
        for edge in unpaid {
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

    /// What reconcile documents to restore is owed until it ran, or until a foreign action that it does not undo.
    fn settle_debts(&mut self, action: &Action, lost: &[Edge], answered: &BTreeSet<Edge>) {
        self.debts.retain(|edge| !answered.contains(edge));
        // With the spanning tree protocol a port forwards nothing for half a minute after it came up.
        let mut links = self.world.snapshot.facts.values();
        if links.any(|fact| fact.value.contains(" stp=1 ")) {
            self.debts.clear();
            return;
        }
        match action {
            Action::Node(command) if is_reconcilable(command) => {
                self.debts.extend(lost.iter().cloned())
            }
            Action::Node(_) | Action::Config { .. } | Action::Reboot => self.debts.clear(),
            Action::Cli(words) if words == "reconcile" => self.debts.clear(),
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
        for is_v6 in attachment.addresses.iter().map(IpAddr::is_ipv6) {
            let edge = |from: &Target, to: Peer| Edge {
                from: from.clone(),
                to,
                is_v6,
            };
            if !attachment.gateways.is_empty() {
                edges.insert(edge(target, Peer::Gateway));
            }
            if attachment.is_masqueraded() {
                edges.insert(edge(target, Peer::Outside));
            }
            // With two interfaces in one subnet, which of them answers is up to the pod's kernel.
            let is_alone = |it: &Target| {
                let mut all = self.world.model.living();
                !all.any(|(other, _)| {
                    other.pod == it.pod && other != it && other.network == it.network
                })
            };
            let living = self.world.model.living();
            let peers = living.filter(|(it, _)| it.network == target.network && *it != target);
            let peers = peers.filter(|(it, _)| is_alone(it) && is_alone(target));
            for (peer, its) in peers {
                // A peer whose link an administrator broke is connected to nobody.
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

/// Whether `reconcile` restores what a shell command takes from pods: a bridge's existence, its state and gateway address,
/// its ports, forwarding, and rules.
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
    let is_port = command.starts_with("ip link set $")
        && (command.ends_with(" down") || command.ends_with(" nomaster"));
    is_port || reconcilable.iter().any(|begin| command.starts_with(begin))
}
