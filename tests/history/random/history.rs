//! One history: actions carried out on a fresh node, with the invariants checked after each.
//!
//! 1. A call of gangplank does not interrupt the connectivity of a live attachment, and a new attachment has the
//!    connectivity that the Go plugin provides. Connectivity broken by a foreign action is not expected afterwards,
//!    unless `reconcile` is documented to restore it: then it is expected after `reconcile`.
//! 2. A call of gangplank changes only what [`Effects`] allows.
//! 3. A successful DEL or GC of gangplank leaves no resource of the attachment.
//! 4. No address is assigned twice on a network.
//! 5. Calls end in time, with valid JSON; DEL, GC and STATUS succeed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::action::{Action, Implementation, NetnsArgument, Options, Target, Verb};
use super::effects::{Effects, bridges_of};
use super::model::{Attachment, State};
use super::snapshot::{Snapshot, Subject};
use super::traffic::Edge;
use super::world::{Outcome, World};
use crate::support::note;

/// A violation of an invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub step: usize,
    /// The invariant, without names of pods or networks.
    pub kind: String,
    /// The affected object, by names that do not depend on the implementation.
    pub subject: String,
    /// The description.
    pub text: String,
    /// Whether the finding is dropped if the Go plugins have it at the same step.
    pub is_excused_by_go: bool,
}

/// A node with its history so far.
pub struct History {
    pub(super) world: World,
    findings: Vec<Finding>,
    killed: BTreeSet<usize>,
    step: usize,
    /// Connectivity lost to foreign actions, which `reconcile` restores.
    pub(super) restorable: BTreeSet<Edge>,
    /// Pods and interfaces that a killed or failed call may have left.
    pub(super) possible_leftovers: BTreeSet<(String, String)>,
    /// Objects that DEL of a Go plugin left, with their network.
    pub(super) left: BTreeMap<String, String>,
    /// MAC spoof checks that DEL could not find; see [`History::is_findable`].
    pub(super) unfindable: BTreeSet<String>,
}

pub struct HistoryResult {
    pub findings: Vec<Finding>,
    /// Steps whose call was killed.
    pub killed: BTreeSet<usize>,
}

/// Carries out a sequence on a fresh node.
pub fn run(actions: &[Action], under_test: Implementation) -> HistoryResult {
    let mut history = History {
        world: World::new(under_test),
        findings: Vec::new(),
        killed: BTreeSet::new(),
        step: 0,
        restorable: BTreeSet::new(),
        possible_leftovers: BTreeSet::new(),
        left: BTreeMap::new(),
        unfindable: BTreeSet::new(),
    };
    for action in actions {
        history.next(action);
        history.step += 1;
    }
    HistoryResult {
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
            note(&format!("{action}: {:?}", outcome.answer));
        }
        if outcome.was_killed() {
            self.killed.insert(self.step);
        }
        let after = self.world.observe();
        let before = std::mem::replace(&mut self.world.snapshot, after);
        let exists = |key: &String| self.world.snapshot.facts.contains_key(key);
        self.left.retain(|key, _| exists(key));
        self.unfindable.retain(exists);
        // The allowed changes depend on the state before the call.
        if action.is_gangplank() && self.world.under_test == Implementation::Gangplank {
            self.check_changes(action, &outcome, &before);
        }
        if action.is_gangplank() {
            self.check_answer(action, &outcome, &before);
            self.check_advertisements(action, &outcome);
        }
        let deleted = self.update_model(action, &outcome, &before);
        if !action.is_gangplank() {
            self.world.model.note_losses(&self.world.snapshot);
        }
        if action.is_gangplank()
            && outcome.succeeded()
            && self.world.under_test == Implementation::Gangplank
        {
            self.check_leftovers(action, deleted.as_ref());
        }
        self.check_addresses(action);
        self.check_connectivity(action, &outcome, deleted.as_ref());
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

    /// Updates the model. Returns the deleted attachment.
    fn update_model(
        &mut self,
        action: &Action,
        outcome: &Outcome,
        before: &Snapshot,
    ) -> Option<Attachment> {
        match action {
            Action::Call(by, verb, target, options) => {
                // A failed ADD of the Go plugin leaves its link if IPAM failed.
                let is_left = *by == Implementation::Go && !outcome.succeeded();
                if is_left || options.kill_after.is_some() || options.netns != NetnsArgument::Own {
                    self.possible_leftovers
                        .insert((target.pod.clone(), target.ifname.clone()));
                }
                match verb {
                    Verb::Add => self.update_add(*by, target, outcome, before),
                    Verb::Del => {
                        self.note_left_by_del(*by, target, options, outcome);
                        self.update_indistinguishable(target, options);
                        return self.update_del(target, outcome);
                    }
                    Verb::Check => {}
                }
            }
            Action::Gc(_, network, Some(pod)) if outcome.succeeded() => {
                self.update_gc(network, pod)
            }
            // Resources of pods that ended may be removed.
            Action::Node(command) if command.contains("/run/boot_id") => {
                self.world.model.has_rebooted = true;
            }
            Action::End(pod) => self.possible_leftovers.retain(|(it, _)| it != pod),
            Action::Reboot => self.possible_leftovers.clear(),
            _ => {}
        }
        None
    }

    fn update_add(
        &mut self,
        by: Implementation,
        target: &Target,
        outcome: &Outcome,
        before: &Snapshot,
    ) {
        let mut attachment = match &outcome.answer {
            Some(answer) if outcome.succeeded() => self.world.attachment_of(by, target, answer),
            _ if outcome.was_killed() && !self.world.model.lives(target) => {
                Attachment::unknown(by, self.world.config(&target.network))
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
        // A map element belongs to the attachment to which its address is assigned now.
        let elements = attachment.addresses.iter().map(|ip| format!(" {ip} "));
        let elements: Vec<String> = elements.collect();
        let is_new = |key: &String| elements.iter().any(|it| key.contains(it));
        self.left.retain(|key, _| !is_new(key));
        self.world
            .model
            .attachments
            .insert(target.clone(), attachment);
        self.world.update_cache(target);
    }

    /// GC removes the resources of a pod that is not valid, or keeps all of them.
    fn update_gc(&mut self, network: &str, pod: &str) {
        let all = self.world.model.attachments.keys();
        let dropped = all.filter(|it| it.network == network && it.pod == pod);
        for target in dropped.cloned().collect::<Vec<Target>>() {
            let attachment = self.world.model.attachments.remove(&target);
            let attachment = attachment.expect("it is one of them");
            self.possible_leftovers
                .insert((target.pod.clone(), target.ifname.clone()));
            self.world.update_cache(&target);
            let snapshot = &self.world.snapshot;
            let has_link = attachment
                .links
                .iter()
                .any(|index| snapshot.link_name(*index).is_some());
            let has_lease = |ip: &IpAddr| snapshot.lease(network, &ip.to_string()).is_some();
            let is_freed = !attachment.addresses.iter().all(has_lease) && !attachment.lost_lease;
            // If host-local is called directly, the caller deletes the link.
            let is_bridge = !["flat", "raw"].contains(&target.network.as_str());
            if has_link && is_freed && is_bridge && attachment.state == State::Live {
                self.find(
                    "GC freed an address that a link still has",
                    target.to_string(),
                    target.to_string(),
                );
            }
            if has_link {
                let attachment = Attachment {
                    state: State::Unknown,
                    ..attachment
                };
                self.world.model.attachments.insert(target, attachment);
            }
        }
    }

    fn update_indistinguishable(&mut self, target: &Target, options: &Options) {
        let model = &mut self.world.model;
        for taken in model.indistinguishable(target, options) {
            let attachment = model.attachments.get_mut(&taken).expect("it is known");
            let mut links = attachment.links.iter();
            if !links.any(|index| self.world.snapshot.link_name(*index).is_some()) {
                attachment.state = State::Unknown;
            }
        }
    }

    fn update_del(&mut self, target: &Target, outcome: &Outcome) -> Option<Attachment> {
        if !outcome.succeeded() {
            if let Some(attachment) = self.world.model.attachments.get_mut(target) {
                attachment.state = State::Unknown;
            }
            return None;
        }
        let deleted = self.world.model.attachments.remove(target);
        self.world.update_cache(target);
        deleted
    }
}
