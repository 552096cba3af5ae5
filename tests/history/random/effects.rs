//! The changes that an action of gangplank may make.

use std::net::IpAddr;

use super::action::{Action, Options, Target, Verb};
use super::model::{Attachment, Model, State};
use super::networks::{self, BRIDGES};
use super::snapshot::{Change, Fact, Owner, Snapshot, Subject};

/// An action, and the state before it.
pub struct Effects<'a> {
    pub action: &'a Action,
    /// The bridges of the network's configuration, now and at the attachment's ADD.
    pub bridges: Vec<String>,
    pub model: &'a Model,
    pub before: &'a Snapshot,
    /// A failed call leaves nothing.
    pub is_refused: bool,
}

impl Effects<'_> {
    /// Whether a change is one of the documented effects of the action.
    pub fn allow(&self, change: &Change<'_>) -> bool {
        match self.action {
            Action::Call(_, Verb::Add, target, _) => self.add(target, change),
            Action::Call(_, Verb::Del, target, options) => {
                self.del(target, change) || self.is_indistinguishable(target, options, change)
            }
            Action::Gc(_, network, dropped) => self.gc(network, dropped.as_deref(), change),
            Action::Cli(words) if words == "reconcile" => self.repair(change),
            Action::Cli(words) if words.contains("--fix") => {
                self.repair(change) || self.collect(change, None, |_| false)
            }
            // CHECK, STATUS, `status` and `doctor` change nothing.
            _ => false,
        }
    }

    fn add(&self, target: &Target, change: &Change<'_>) -> bool {
        let (is_new, is_kept) = (change.before.is_none(), change.after.is_some());
        match change.subject() {
            Subject::Shared => true,
            Subject::Link { name, .. } if self.bridges.contains(name) => {
                is_kept && (is_new || keeps_mac(change))
            }
            Subject::Link { name, .. } => is_new && name.starts_with("veth") && !self.is_refused,
            Subject::Address { link } | Subject::Route { link } => {
                is_new && self.bridges.contains(link)
            }
            Subject::Parameter { link } => self.may_set_parameter(link, change),
            Subject::Rule(owner) => match is_new {
                // Another interface of the container has the same chain of iptables.
                true => {
                    let mut others = self.model.attachments.keys().filter(|it| *it != target);
                    // A failed DEL may have left a jump into the chain.
                    let known = self.model.attachments.get(target);
                    let has_jump = known.is_some_and(|it| it.state == State::Unknown);
                    let is_needed = has_jump || others.any(|it| owner.may_be(it));
                    owner.may_be(target) && (!self.is_refused || is_needed)
                }
                // A chain without rules.
                false if change.key.contains(" :CNI-") || self.is_in_unused_chain(change) => {
                    owner.container == target.pod
                }
                // Without a lease the container looks new.
                false if self.has_lost_lease(target) => {
                    owner.may_be(target) || self.is_reassigned(owner)
                }
                // The rule of an address follows the address to its new attachment.
                false if change.key.starts_with("nft inet gangplank ") => {
                    !self.is_address_of_live(owner, change) || self.is_reassigned(owner)
                }
                false => !self.model.is_of_live(owner, None) || self.is_reassigned(owner),
            },
            Subject::Lease { network, .. } => {
                *network == target.network && self.add_lease(target, change)
            }
            Subject::Foreign => false,
        }
    }

    fn is_reassigned(&self, owner: &Owner) -> bool {
        let of_owner = |target: &Target| owner.network.is_some() && owner.may_be(target);
        let mut live = self.model.live();
        live.any(|(target, attachment)| attachment.lost_lease && of_owner(target))
    }

    /// Whether the rule is in a chain without a jump, because POSTROUTING was flushed.
    fn is_in_unused_chain(&self, change: &Change<'_>) -> bool {
        let mut words = change.key.split(' ');
        let program = words.next().unwrap_or_default();
        let Some(chain) = words.nth(1).filter(|chain| chain.starts_with("CNI-")) else {
            return false;
        };
        let jump = format!(" -j {chain}");
        let mut keys = self.before.facts.keys();
        !keys.any(|key| key.starts_with(program) && key.ends_with(&jump))
    }

    fn has_lost_lease(&self, target: &Target) -> bool {
        let known = self.model.attachments.get(target);
        known.is_some_and(|attachment| attachment.lost_lease)
    }

    /// A new lease names the container. A lease is deleted if it is corrupt or from before a reboot.
    fn add_lease(&self, target: &Target, change: &Change<'_>) -> bool {
        let is_own = |fact: &Fact| lease_owner(fact).is_some_and(|owner| owner.may_be(target));
        let may_add = change
            .after
            .is_none_or(|fact| is_own(fact) && !self.is_refused);
        let may_remove = change.before.is_none_or(|fact| match lease_owner(fact) {
            Some(owner) => self.model.has_rebooted && !self.is_address_of_live(owner, change),
            None => is_corrupt(&fact.value) || self.model.has_rebooted,
        });
        may_add && may_remove
    }

    /// Whether a lease or map element is that of a live attachment. One from a backup or of an earlier attachment may
    /// be for an address that the attachment had before.
    fn is_address_of_live(&self, owner: &Owner, change: &Change<'_>) -> bool {
        let mut words = change.key.split(['/', ' ']);
        let address: Option<IpAddr> = words.find_map(|word| word.parse().ok());
        let has_it = |it: &Attachment| address.is_none_or(|ip| it.addresses.contains(&ip));
        let mut live = self.model.live();
        live.any(|(target, attachment)| owner.may_be(target) && has_it(attachment))
    }

    fn del(&self, target: &Target, change: &Change<'_>) -> bool {
        let is_gone = change.after.is_none();
        match change.subject() {
            Subject::Shared => true,
            // A bridge without a fixed MAC address takes that of a port.
            Subject::Link { name, .. } if is_bridge(name) => !is_gone,
            Subject::Link { index, name } => is_gone && self.is_own_link(target, *index, name),
            Subject::Rule(owner) => {
                let is_living =
                    self.model.is_of_live(owner, Some(target)) && owner.ifname.is_some();
                is_gone && owner.may_be(target) && (!is_living || self.is_dead_jump(change))
            }
            Subject::Lease { network, owner } => {
                let is_own = owner.as_ref().is_some_and(|owner| owner.may_be(target));
                is_gone && *network == target.network && is_own
            }
            Subject::Parameter { link } => is_gone && is_pods(link),
            // A restore by nft may have removed targets and comments of rules in the chain of the container.
            Subject::Foreign => is_gone && is_chain_of_container(change),
            Subject::Address { .. } | Subject::Route { .. } => false,
        }
    }

    fn is_indistinguishable(
        &self,
        target: &Target,
        options: &Options,
        change: &Change<'_>,
    ) -> bool {
        let Subject::Link { index, .. } = change.subject() else {
            return false;
        };
        let indistinguishable = self.model.indistinguishable(target, options);
        let has_it = |it: &Target| self.model.attachments[it].links.contains(index);
        change.after.is_none() && indistinguishable.iter().any(has_it)
    }

    /// Whether a link belongs to the attachment, or to no live one.
    fn is_own_link(&self, target: &Target, index: u64, name: &str) -> bool {
        let known = self.model.attachments.get(target);
        let is_own = known.is_some_and(|attachment| attachment.links.contains(&index));
        let is_left = name.starts_with("veth") && self.model.live_with_link(index).is_none();
        is_own || is_left
    }

    /// Whether the rule is of a MAC spoof check whose jump rule is for an interface that no longer exists. It matches
    /// no packet, even if a live attachment to another network has the same container ID and interface name, and so the
    /// same chain.
    fn is_dead_jump(&self, change: &Change<'_>) -> bool {
        const TABLE: &str = "nft bridge nat ";
        let is_dead = |key: &str| {
            let (_, input) = key.split_once("PREROUTING iifname \"")?;
            Some(!self.before.has_link(input.split('"').next()?))
        };
        let Some(rule) = change.key.strip_prefix(TABLE) else {
            return false;
        };
        let chain = rule.split(' ').next().unwrap_or_default();
        if chain == "PREROUTING" {
            return is_dead(change.key) == Some(true);
        }
        let jump = format!(" jump {} ", chain.trim_end_matches("-mac"));
        let keys = self.before.facts.keys();
        let mut jumps = keys.filter(|key| key.starts_with(TABLE) && key.contains(&jump));
        chain.starts_with("cni-br-iface-") && jumps.all(|key| is_dead(key) != Some(false))
    }

    fn gc(&self, network: &str, dropped: Option<&str>, change: &Change<'_>) -> bool {
        let is_dropped =
            |target: &Target| target.network == network && Some(&*target.pod) == dropped;
        matches!(change.subject(), Subject::Shared)
            || self.collect(change, Some(network), is_dropped)
    }

    /// Resources without a valid attachment, on one network or on all, may be removed.
    fn collect(
        &self,
        change: &Change<'_>,
        network: Option<&str>,
        is_dropped: impl Fn(&Target) -> bool,
    ) -> bool {
        let all = self.model.attachments.iter();
        let valid = all.filter(|(target, it)| it.state != State::Dead && !is_dropped(target));
        let valid: Vec<_> = valid.collect();
        let is_valid = |owner: &Owner| {
            let mut valid = valid.iter();
            // A MAC spoof check is stale if its link does not exist.
            let has_its_link = |it: &Attachment| owner.network.is_some() || it.state == State::Live;
            valid.any(|(target, it)| it.may_have(owner) && has_its_link(it) && owner.may_be(target))
        };
        let has_link = |index: u64| valid.iter().any(|(_, it)| it.links.contains(&index));
        let is_of = |name: &str| network.is_none_or(|network| network == name);
        let is_gone = change.after.is_none();
        match change.subject() {
            Subject::Shared => true,
            Subject::Rule(owner) => {
                let is_stale = !is_valid(owner) || self.is_dead_jump(change);
                is_gone && owner.network.as_deref().is_none_or(is_of) && is_stale
            }
            Subject::Lease { network, owner } => {
                // After a reboot only leases of live attachments are kept.
                let is_kept = |owner: &Owner| match self.model.has_rebooted {
                    true => is_valid(owner) && self.is_address_of_live(owner, change),
                    false => is_valid(owner),
                };
                is_gone && is_of(network) && !owner.as_ref().is_some_and(is_kept)
            }
            Subject::Link { name, .. } if is_bridge(name) => !is_gone,
            Subject::Link { index, name } => is_gone && is_pods(name) && !has_link(*index),
            Subject::Parameter { link } => is_gone && is_pods(link),
            _ => false,
        }
    }

    /// Missing resources of pods that may be live are recreated: after a killed ADD a pod may look attached.
    fn repair(&self, change: &Change<'_>) -> bool {
        let is_bridge = |name: &str| BRIDGES.contains(&name);
        match change.subject() {
            Subject::Shared => true,
            Subject::Link { name, .. } if is_bridge(name) => change.after.is_some(),
            Subject::Link { index, .. } => {
                let was_free = change
                    .before
                    .is_some_and(|fact| fact.value.contains(" master=null "));
                let is_same = master(change.before) == master(change.after);
                let may_be_known = self.model.may_have_link(*index) || self.may_be_unclear(change);
                change.after.is_some() && may_be_known && (was_free || is_same)
            }
            Subject::Address { link } | Subject::Route { link } => {
                change.after.is_some() && is_bridge(link)
            }
            Subject::Rule(owner) => self.model.may_be_of(owner),
            Subject::Parameter { link } => {
                let is_uplink = change.key.ends_with("accept_ra")
                    && change.after.is_some_and(|it| it.value == "2");
                is_uplink || is_bridge(link) || self.may_set_parameter(link, change)
            }
            Subject::Lease { .. } => false,
            // A restore by nft may have removed targets and comments of rules in the chain of a container.
            Subject::Foreign => is_chain_of_container(change),
        }
    }

    /// Whether the link may be that of an attachment whose ADD was killed: the alias names its pod.
    fn may_be_unclear(&self, change: &Change<'_>) -> bool {
        let mut all = self.model.attachments.iter();
        all.any(|(target, attachment)| {
            let alias = format!("alias=\"{}\"", target.pod);
            let has_alias = |fact: &Fact| fact.value.contains(&alias);
            attachment.state == State::Unknown && change.before.is_some_and(has_alias)
        })
    }

    /// Forwarding is enabled, accept_ra is disabled on the bridge, and a new link has new parameters.
    fn may_set_parameter(&self, link: &str, change: &Change<'_>) -> bool {
        let becomes = |value: &str| change.after.is_some_and(|fact| fact.value == value);
        match link {
            "all" => becomes("1"),
            _ if change.before.is_none() => self.bridges.iter().any(|bridge| bridge == link),
            _ => {
                change.key.ends_with("accept_ra")
                    && becomes("0")
                    && self.bridges.iter().any(|bridge| bridge == link)
            }
        }
    }
}

/// The bridges that a call may change.
pub fn bridges_of(
    model: &Model,
    config: &serde_json::Value,
    target: Option<&Target>,
) -> Vec<String> {
    let known = target.and_then(|target| model.attachments.get(target));
    let configs = [Some(config), known.map(|it| &it.config)];
    let names = configs
        .into_iter()
        .flatten()
        .filter(|config| !networks::is_direct(config));
    names
        .filter_map(|config| config["bridge"].as_str().map(str::to_owned))
        .collect()
}

/// Whether rules without a comment are in the chain of a container, or jump into it.
fn is_chain_of_container(change: &Change<'_>) -> bool {
    let value = change.before.map_or("", |fact| &fact.value);
    change.key.contains(" nat CNI-") || value.lines().all(|rule| rule.contains(" -j CNI-"))
}

/// Whether a link is a bridge by its name; `adm0` is one that an administrator renamed.
fn is_bridge(name: &str) -> bool {
    BRIDGES.contains(&name) || name == "adm0"
}

/// Whether a link is the host end of a pod's link, judging by its name. Links renamed by administrators begin with
/// `renamed`.
fn is_pods(link: &str) -> bool {
    link.starts_with("veth") || link.starts_with("renamed")
}

fn lease_owner(fact: &Fact) -> Option<&Owner> {
    match &fact.subject {
        Subject::Lease { owner, .. } => owner.as_ref(),
        _ => None,
    }
}

/// Whether a lease file names no container and interface.
fn is_corrupt(content: &str) -> bool {
    let lines: Vec<&str> = content.lines().map(str::trim).collect();
    let is_word = |word: &&str| {
        !word.is_empty() && !word.contains(|c: char| c.is_control() || c.is_whitespace())
    };
    lines.len() != 2 || !lines.iter().all(is_word)
}

fn keeps_mac(change: &Change<'_>) -> bool {
    // A bridge without a fixed MAC address has none without ports.
    let before = word(change.before, "mac=");
    before == Some("\"00:00:00:00:00:00\"") || before == word(change.after, "mac=")
}

fn master(fact: Option<&Fact>) -> Option<&str> {
    word(fact, "master=")
}

fn word<'f>(fact: Option<&'f Fact>, name: &str) -> Option<&'f str> {
    fact?
        .value
        .split(' ')
        .find_map(|word| word.strip_prefix(name))
}
