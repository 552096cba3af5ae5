//! One history: actions carried out on a fresh node, with the invariants checked after each.
//!
//! 1. A call of ours takes no connectivity from a living attachment, and a new attachment has the connectivity that the
//!    Go plugin gives it. What a foreign action takes away is not expected afterwards; what `reconcile` documents to
//!    restore is expected after it.
//! 2. A call of ours changes nothing but what [`Effects`] allows.
//! 3. After a successful DEL or GC of ours nothing of the attachment remains.
//! 4. No address is assigned twice on a network.
//! 5. Calls are answered in time, with valid JSON; DEL, GC and STATUS succeed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::action::{Action, Implementation, NetnsArgument, Options, Target, Verb};
use super::effects::{Effects, bridges_of};
use super::model::{Attachment, State};
use super::snapshot::{Owner, Snapshot, Subject};
use super::traffic::Edge;
use super::world::{Outcome, World};
use crate::support::say;

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
    pub(super) world: World,
    findings: Vec<Finding>,
    killed: BTreeSet<usize>,
    step: usize,
    /// Connectivity lost to foreign actions since everything was as it should be, which `reconcile` restores.
    pub(super) debts: BTreeSet<Edge>,
    /// Interfaces of pods that a killed or incomplete call may have left in the pod.
    pub(super) unclean: BTreeSet<(String, String)>,
    /// Objects of attachments that DEL of a Go plugin left, with the network.
    left: BTreeMap<String, String>,
    /// MAC spoof checks that DEL could not find; see [`History::is_findable`].
    hidden: BTreeSet<String>,
}

/// What came of a history.
pub struct Findings {
    pub findings: Vec<Finding>,
    /// The steps whose call was killed.
    pub killed: BTreeSet<usize>,
}

/// Carries out a sequence on a fresh node.
pub fn run(actions: &[Action], ours: Implementation) -> Findings {
    let mut history = History {
        world: World::new(ours),
        findings: Vec::new(),
        killed: BTreeSet::new(),
        step: 0,
        debts: BTreeSet::new(),
        unclean: BTreeSet::new(),
        left: BTreeMap::new(),
        hidden: BTreeSet::new(),
    };
    for action in actions {
        history.next(action);
        history.step += 1;
    }
    Findings {
        findings: history.findings,
        killed: history.killed,
    }
}

impl History {
    pub(super) fn find(&mut self, kind: &str, subject: String, text: String) {
        self.note(kind, subject, text, false);
    }

    pub(super) fn note(
        &mut self,
        kind: &str,
        subject: String,
        text: String,
        is_excused_by_go: bool,
    ) {
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
        if std::env::var_os("GANGPLANK_HISTORY_FILE").is_some() {
            say(&format!("{action}: {:?}", outcome.answer));
        }
        if outcome.was_killed() {
            self.killed.insert(self.step);
        }
        let after = self.world.observe();
        let before = std::mem::replace(&mut self.world.snapshot, after);
        let exists = |key: &String| self.world.snapshot.facts.contains_key(key);
        self.left.retain(|key, _| exists(key));
        self.hidden.retain(exists);
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
            self.world.model.note_losses(&self.world.snapshot);
        }
        if action.is_ours() && outcome.succeeded() && self.world.ours == Implementation::Ours {
            self.check_remains(action, gone.as_ref());
        }
        self.check_addresses(action);
        self.check_connectivity(action, &outcome, gone.as_ref());
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
            before,
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

    /// Brings the model up to date; the attachment that was deleted.
    fn follow(
        &mut self,
        action: &Action,
        outcome: &Outcome,
        before: &Snapshot,
    ) -> Option<Attachment> {
        match action {
            Action::Call(by, verb, target, options) => {
                // ADD of the Go plugin leaves its link when IPAM fails.
                let is_left = *by == Implementation::Go && !outcome.succeeded();
                if is_left || options.kill_after.is_some() || options.netns != NetnsArgument::Own {
                    self.unclean
                        .insert((target.pod.clone(), target.ifname.clone()));
                }
                match verb {
                    Verb::Add => self.follow_add(*by, target, outcome, before),
                    Verb::Del => {
                        self.note_left(*by, target, options);
                        self.follow_indistinct(target, options);
                        return self.follow_del(target, outcome);
                    }
                    Verb::Check => {}
                }
            }
            Action::Gc(_, network, Some(pod)) if outcome.succeeded() => {
                self.follow_gc(network, pod)
            }
            // Whether the machine rebooted or not: what ended before may be collected.
            Action::Node(command) if command.contains("/run/boot_id") => {
                self.world.model.has_rebooted = true;
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
        // An element of an address that is assigned again is the new attachment's.
        let elements = attachment.addresses.iter().map(|ip| format!(" {ip} "));
        let elements: Vec<String> = elements.collect();
        let is_new = |key: &String| elements.iter().any(|it| key.contains(it));
        self.left.retain(|key, _| !is_new(key));
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
            // Where host-local is called directly, the caller deletes the link.
            let is_bridge = !["flat", "raw"].contains(&target.network.as_str());
            if has_link && is_freed && is_bridge && attachment.state == State::Living {
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

    /// Whether DEL can find the link of an attachment. To that of the Go plugin nothing leads without namespace and
    /// prevResult. On a layer-2 network, without prevResult, the bridge tells whose it is, and that may have another name.
    /// A MAC spoof check is told from that of another network by its link.
    fn is_findable(&self, target: &Target, known: Option<&Attachment>, options: &Options) -> bool {
        let Some(of_go) = known.filter(|it| it.made_by == Implementation::Go) else {
            return true;
        };
        let bridge = self.world.config(&target.network)["bridge"].to_string();
        let is_port = self.world.snapshot.bridge_of(&of_go.links) == Some(&*bridge);
        let is_told = target.network != "flat" || !options.without_prev_result || is_port;
        options.netns == NetnsArgument::Own && is_told
    }

    fn follow_indistinct(&mut self, target: &Target, options: &Options) {
        let model = &mut self.world.model;
        for taken in model.indistinct(target, options) {
            let attachment = model.attachments.get_mut(&taken).expect("it is known");
            let mut links = attachment.links.iter();
            if !links.any(|index| self.world.snapshot.link_name(*index).is_some()) {
                attachment.state = State::Unclear;
            }
        }
    }

    fn note_left(&mut self, by: Implementation, target: &Target, options: &Options) {
        let known = self.world.model.attachments.get(target);
        let facts = self.world.snapshot.facts.iter();
        let remains = facts.filter(|(_, fact)| match &fact.subject {
            Subject::Rule(owner) => {
                owner.may_be(target) && known.is_some_and(|it| it.may_have(owner))
            }
            _ => false,
        });
        let remains = remains.map(|(key, _)| key.clone());
        let is_check = |it: &String| it.starts_with("nft bridge nat ");
        if by == Implementation::Go {
            let network = &target.network;
            let of_go = remains.map(|it| (it, network.clone()));
            self.left.extend(of_go);
        } else if !self.is_findable(target, known, options) {
            self.hidden.extend(remains.filter(is_check));
        }
    }

    /// Whether an object may remain after DEL of ours that DEL of a Go plugin left. A MAC spoof check of a link that exists
    /// may be that of another network with the same container and interface. An element of our table, which the Go plugins
    /// do not know, is found by its address; the next attachment of that name has another one, and the element is for GC.
    fn is_for_gc(&self, object: &str, target: &Target) -> bool {
        let is_of_go = |network: &String| {
            *network != target.network || object.starts_with("nft inet gangplank ")
        };
        self.hidden.contains(object) || self.left.get(object).is_some_and(is_of_go)
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
                // An interface whose pod has ended keeps its own until its DEL.
                remains.extend(self.remains(target, |_| true));
                remains.retain(|it| !self.is_for_gc(it, target));
                // A killed ADD of the Go plugin left a link without lease, address and bridge: nothing tells whose it is.
                let is_unknown = |index: &u64| {
                    let links = BTreeSet::from([*index]);
                    let is_port = self.world.snapshot.bridge_of(&links) != Some("null");
                    let mut of_go = gone.iter().filter(|it| it.made_by == Implementation::Go);
                    !is_port && of_go.any(|it| it.state == State::Unclear && it.result.is_null())
                };
                let links = gone.iter().flat_map(|attachment| &attachment.links);
                for index in links.filter(|index| !is_unknown(index)) {
                    let Some(name) = self.world.snapshot.link_name(*index) else {
                        continue;
                    };
                    // Nothing but the pod's end leads to a link of another name.
                    let is_found_by_name = gone
                        .is_some_and(|it| it.made_by == Implementation::Ours)
                        && name.starts_with("veth");
                    let is_findable = options.netns == NetnsArgument::Own
                        && self.is_findable(target, gone, options);
                    if is_found_by_name || is_findable {
                        remains.push(format!("link {name}"));
                    }
                }
            }
            Action::Gc(_, network, _) => {
                let all = self.world.model.attachments.iter();
                let dead = all.filter(|(it, attachment)| {
                    it.network == *network && attachment.state == State::Dead
                });
                let keeps = |other: &Attachment| other.state != State::Dead;
                remains = dead
                    .flat_map(|(target, _)| self.remains(target, keeps))
                    .collect();
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

    /// What belongs to an attachment and to none of the others that keep what they have.
    fn remains(&self, target: &Target, keeps: impl Fn(&Attachment) -> bool) -> Vec<String> {
        let is_left = |owner: &Owner| {
            let mut others = self
                .world
                .model
                .attachments
                .iter()
                .filter(|(it, attachment)| {
                    let is_other = *it != target && keeps(attachment);
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
}
