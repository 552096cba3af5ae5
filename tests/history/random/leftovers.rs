//! Invariant 3 of a history: DEL and GC leave nothing behind.

use std::collections::BTreeSet;

use super::action::{Action, Implementation, NetnsArgument, Options, Target, Verb};
use super::history::History;
use super::model::{Attachment, State};
use super::snapshot::{Owner, Subject};
use super::world::Outcome;

impl History {
    /// Whether DEL can find the link of an attachment. A link of the Go plugin cannot be found without namespace and
    /// prevResult. Without prevResult it is identified by the lease, or on a layer-2 network by its bridge, which may
    /// have been renamed. A MAC spoof check is distinguished from that of another network by its link.
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

    /// Records what may remain after DEL of an attachment; see [`History::is_for_gc`].
    pub(super) fn note_left_by_del(
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
        // After DEL of the Go plugin neither a lease nor a prevResult identifies its link.
        let is_hidden = match by {
            Implementation::Go => known.made_by == Implementation::Go && outcome.succeeded(),
            Implementation::Gangplank => !self.is_findable(target, known, options),
        };
        if is_hidden {
            let checks = rules.iter().filter(|it| it.starts_with("nft bridge nat "));
            self.unfindable.extend(checks.cloned());
        }
        if by == Implementation::Go {
            let network = &target.network;
            let of_go = rules.into_iter().map(|it| (it, network.clone()));
            self.left.extend(of_go);
        }
    }

    /// Whether an object that DEL of a Go plugin left may remain after DEL of gangplank. A MAC spoof check of an
    /// existing link may belong to another network with the same container and interface. A map element of gangplank,
    /// which the Go plugins ignore, is found by its address; the next attachment of that name has another address, so
    /// GC removes the element.
    fn is_for_gc(&self, object: &str, target: &Target) -> bool {
        let is_of_go = |network: &String| {
            *network != target.network || object.starts_with("nft inet gangplank ")
        };
        self.unfindable.contains(object) || self.left.get(object).is_some_and(is_of_go)
    }

    /// Invariant 3. Resources that a Go plugin should have removed may remain.
    pub(super) fn check_leftovers(&mut self, action: &Action, deleted: Option<&Attachment>) {
        let mut leftovers: Vec<String> = Vec::new();
        match action {
            Action::Call(_, Verb::Del, target, options) => {
                // An attachment whose pod ended keeps its resources until DEL.
                leftovers.extend(self.leftovers(target, |_, _| true));
                leftovers.retain(|it| !self.is_for_gc(it, target));
                // A link without lease, address and bridge, left by a killed ADD of the Go plugin, cannot be
                // identified.
                let is_unknown = |index: &u64| {
                    let links = BTreeSet::from([*index]);
                    let is_port = self.world.snapshot.bridge_of(&links) != Some("null");
                    let mut of_go = deleted.iter().filter(|it| it.made_by == Implementation::Go);
                    !is_port && of_go.any(|it| it.state == State::Unknown && it.result.is_null())
                };
                let links = deleted.iter().flat_map(|attachment| &attachment.links);
                for index in links.filter(|index| !is_unknown(index)) {
                    let Some(name) = self.world.snapshot.link_name(*index) else {
                        continue;
                    };
                    // A renamed link can only be identified by its peer in the pod.
                    let is_found_by_name = deleted
                        .is_some_and(|it| it.made_by == Implementation::Gangplank)
                        && name.starts_with("veth");
                    let is_findable = options.netns == NetnsArgument::Own
                        && deleted.is_some_and(|it| self.is_findable(target, it, options));
                    if is_found_by_name || is_findable {
                        leftovers.push(format!("link {name}"));
                    }
                }
            }
            Action::Gc(_, network, _) => {
                let all = self.world.model.attachments.iter();
                let dead = all.filter(|(it, attachment)| {
                    it.network == *network && attachment.state == State::Dead
                });
                // A MAC spoof check does not name its network.
                let keeps = |other: &Target, attachment: &Attachment| {
                    attachment.state != State::Dead || other.network != *network
                };
                leftovers = dead
                    .flat_map(|(target, _)| self.leftovers(target, keeps))
                    .collect();
            }
            _ => {}
        }
        if !leftovers.is_empty() {
            self.find(
                &format!("{} left something behind", action.name()),
                String::new(),
                leftovers.join("\n"),
            );
        }
    }

    /// Objects that belong to an attachment and not to another one that keeps them.
    fn leftovers(
        &self,
        target: &Target,
        keeps: impl Fn(&Target, &Attachment) -> bool,
    ) -> Vec<String> {
        let is_left = |owner: &Owner| {
            let mut others = self
                .world
                .model
                .attachments
                .iter()
                .filter(|(it, attachment)| {
                    let is_other = *it != target && keeps(it, attachment);
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
