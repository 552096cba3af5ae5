//! Invariant 3 of a history: what DEL and GC leave behind.

use std::collections::BTreeSet;

use super::action::{Action, Implementation, NetnsArgument, Options, Target, Verb};
use super::history::History;
use super::model::{Attachment, State};
use super::snapshot::{Owner, Subject};
use super::world::Outcome;

impl History {
    /// Whether DEL can find the link of an attachment. To that of the Go plugin nothing leads without namespace and
    /// prevResult. Without prevResult the lease identifies it, or on a layer-2 network the bridge, which may have another name.
    /// A MAC spoof check is told from that of another network by its link.
    fn is_findable(&self, target: &Target, known: &Attachment, options: &Options) -> bool {
        if known.made_by == Implementation::Gangplank {
            return true;
        }
        let bridge = self.world.config(&target.network)["bridge"].to_string();
        let is_port = self.world.snapshot.bridge_of(&known.links) == Some(&*bridge);
        let is_told = !options.without_prev_result
            || (is_port && target.network == "flat")
            || (!known.lost_lease && target.network != "flat");
        options.netns == NetnsArgument::Own && is_told
    }

    /// Notes what may remain after DEL of an attachment; see [`History::is_for_gc`].
    pub(super) fn note_left(
        &mut self,
        by: Implementation,
        target: &Target,
        options: &Options,
        outcome: &Outcome,
    ) {
        let Some(known) = self.world.model.attachments.get(target) else {
            return;
        };
        let facts = self.world.snapshot.facts.iter();
        let rules = facts.filter(|(_, fact)| match &fact.subject {
            Subject::Rule(owner) => owner.may_be(target) && known.may_have(owner),
            _ => false,
        });
        let rules: Vec<String> = rules.map(|(key, _)| key.clone()).collect();
        // After DEL of the Go plugin there is neither lease nor prevResult that leads to its link.
        let is_hidden = match by {
            Implementation::Go => known.made_by == Implementation::Go && outcome.succeeded(),
            Implementation::Gangplank => !self.is_findable(target, known, options),
        };
        if is_hidden {
            let checks = rules.iter().filter(|it| it.starts_with("nft bridge nat "));
            self.hidden.extend(checks.cloned());
        }
        if by == Implementation::Go {
            let network = &target.network;
            let of_go = rules.into_iter().map(|it| (it, network.clone()));
            self.left.extend(of_go);
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

    /// Invariant 3. What a Go plugin was to remove may remain.
    pub(super) fn check_remains(&mut self, action: &Action, gone: Option<&Attachment>) {
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
                        .is_some_and(|it| it.made_by == Implementation::Gangplank)
                        && name.starts_with("veth");
                    let is_findable = options.netns == NetnsArgument::Own
                        && gone.is_some_and(|it| self.is_findable(target, it, options));
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
            let its = self.world.model.attachments.get(target);
            let may_be_its = its.is_none_or(|attachment| attachment.may_have(owner));
            may_be_its && owner.may_be(target) && others.next().is_none()
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
