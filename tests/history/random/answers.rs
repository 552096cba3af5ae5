//! Invariant 5 of a history: the answers of calls.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use super::action::{Action, Implementation, NetnsArgument, Target, Verb};
use super::history::History;
use super::model::State;
use super::networks;
use super::snapshot::{Snapshot, Subject};
use super::traffic::Peer;
use super::world::Outcome;

/// Time limit of a call. In these histories locks are held only by other calls.
const LIMIT: Duration = Duration::from_secs(12);

impl History {
    /// Invariant 5.
    pub(super) fn check_answer(&mut self, action: &Action, outcome: &Outcome, before: &Snapshot) {
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
                // The Go plugin fails as well, and not only if the chain exists.
                let is_unreadable = text.contains("iptables cannot read its rules");
                let is_expected = self.must_fail(target, before) || self.lacks_iptables(target);
                if !is_expected && !is_unreadable {
                    self.note("ADD failed", target.to_string(), text, true);
                }
            }
            Action::Call(_, Verb::Check, target, options) => {
                let is_usual = options.netns == NetnsArgument::Own && !options.without_prev_result;
                if is_usual && self.is_intact(target) {
                    self.note("CHECK failed", target.to_string(), text, true);
                }
            }
            // Legacy rules can only be removed by iptables-legacy.
            Action::Call(_, Verb::Del, ..) if self.has_only_legacy_rules() => {}
            Action::Call(_, Verb::Del, ..) => self.note("DEL failed", String::new(), text, false),
            // GC keeps the lease and fails if the link of a stale attachment is no port of the network's bridge: it may
            // belong to another network.
            Action::Gc(_, network, Some(pod)) if self.has_port_elsewhere(network, pod) => {}
            // host-local called directly deletes no links.
            Action::Gc(_, network, Some(pod))
                if network == "raw" && self.has_link(network, pod) => {}
            Action::Gc(_, network, _) if self.has_unowned_lease(network) => {}
            Action::Gc(_, network, Some(_)) if self.lacks_a_lease(network) => {}
            Action::Gc(..) => self.note("GC failed", String::new(), text, false),
            Action::Status(..) if !self.has_iptables() => {}
            Action::Status(..) => self.note("STATUS failed", String::new(), text, false),
            // `doctor` exits with 3 if there are findings, `reconcile` with 1 if something could not be repaired.
            Action::Cli(_) if [Some(3), Some(1)].contains(&answer.code) => {}
            _ => self.note("the command failed", String::new(), text, false),
        }
    }

    /// Whether an attachment is live and has lost nothing to foreign actions, which CHECK would report.
    fn is_intact(&self, target: &Target) -> bool {
        let Some(attachment) = self.world.model.attachments.get(target) else {
            return false;
        };
        let reaches = |to: &Peer| {
            let has = |is_v6: bool| {
                let mut edges = self.world.edges.iter();
                edges.any(|it| it.from == *target && it.to == *to && it.is_v6 == is_v6)
            };
            attachment.addresses.iter().all(|ip| has(ip.is_ipv6()))
        };
        let bridge = self.world.snapshot.bridge_of(&attachment.links);
        let bridge = bridge.map(|name| name.trim_matches('"'));
        let is_port = bridge == self.world.config(&target.network)["bridge"].as_str();
        let links = attachment.links.iter();
        let names = links.filter_map(|index| self.world.snapshot.link_name(*index));
        let is_up = names
            .chain(bridge)
            .all(|name| self.world.snapshot.is_up(name));
        // The Go plugin adds its rules behind those of an earlier pod, whose last rule drops all frames.
        let chain = format!(
            "nft bridge nat cni-br-iface-{}-{}-mac ",
            target.pod, target.ifname
        );
        let keys = self.world.snapshot.facts.keys();
        let rules = keys.filter(|key| key.starts_with(&chain) && !key.contains(" chain "));
        let has_old_rules = rules.count() > 2;
        attachment.state == State::Live
            && !has_old_rules
            && !attachment.lost_lease
            && is_port
            && is_up
            && (attachment.gateways.is_empty() || reaches(&Peer::Gateway))
            && (!attachment.is_masqueraded() || reaches(&Peer::Outside))
    }

    fn has_only_legacy_rules(&self) -> bool {
        let mut keys = self.world.snapshot.facts.keys();
        keys.any(|key| key.starts_with("iptables-legacy nat")) && !self.has_iptables()
    }

    fn has_iptables(&self) -> bool {
        let has_program = || fs::exists("/etc/alternatives/iptables").unwrap_or(false);
        self.world.node.inside(has_program)
    }

    /// Whether a network needs iptables, which is not installed. The Go plugins may fail here for another reason: after
    /// a reboot they keep the leases of deleted pods.
    fn lacks_iptables(&self, target: &Target) -> bool {
        let config = self.world.config(&target.network);
        config["ipMasq"] == true && config["ipMasqBackend"] != "nftables" && !self.has_iptables()
    }

    /// Whether a lease names another owner than the attachment with its address, whose link does not identify it
    /// either: it is no port of the network's bridge, or has a random name. GC keeps the lease and fails, because the
    /// address would be assigned twice.
    fn has_unowned_lease(&self, network: &str) -> bool {
        let has_stray = |ip: &IpAddr, target: &Target| {
            let lease = self.world.snapshot.lease(network, &ip.to_string());
            let own = format!("{}\r\n{}", target.pod, target.ifname);
            lease.is_some_and(|lease| lease.trim_end() != own)
        };
        let mut all = self.world.model.attachments.iter();
        all.any(|(target, attachment)| {
            target.network == network
                && attachment.addresses.iter().any(|ip| has_stray(ip, target))
                && (attachment.made_by == Implementation::Go
                    || network == "raw"
                    || self.has_port_elsewhere(network, &target.pod))
        })
    }

    /// Whether an attachment that may be valid has no lease. The link of a stale lease may belong to it, so that GC
    /// keeps both and fails.
    fn lacks_a_lease(&self, network: &str) -> bool {
        let mut all = self.world.model.attachments.iter();
        all.any(|(target, attachment)| {
            let has_lease = |ip: &IpAddr| {
                let lease = self.world.snapshot.lease(network, &ip.to_string());
                lease.is_some_and(|lease| lease.starts_with(&target.pod))
            };
            let mut addresses = attachment.addresses.iter();
            let lacks_lease = attachment.addresses.is_empty() || !addresses.all(has_lease);
            target.network == network && attachment.state != State::Dead && lacks_lease
        })
    }

    fn has_link(&self, network: &str, pod: &str) -> bool {
        let mut all = self.world.model.attachments.iter();
        all.any(|(target, attachment)| {
            let mut links = attachment.links.iter();
            let has_link = links.any(|index| self.world.snapshot.link_name(*index).is_some());
            target.network == network && target.pod == pod && has_link
        })
    }

    fn has_port_elsewhere(&self, network: &str, pod: &str) -> bool {
        let bridge = self.world.config(network)["bridge"].to_string();
        let mut all = self.world.model.attachments.iter();
        all.any(|(target, attachment)| {
            let at = self.world.snapshot.bridge_of(&attachment.links);
            target.network == network && target.pod == pod && at != Some(&*bridge)
        })
    }

    /// A router advertisement from a pod must not give the node a default route.
    pub(super) fn check_advertisements(&mut self, action: &Action, outcome: &Outcome) {
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

    /// Whether the attachment or its interface already exists.
    fn must_fail(&self, target: &Target, before: &Snapshot) -> bool {
        let has_lease = before.facts.values().any(|fact| match &fact.subject {
            Subject::Lease { network, owner } => {
                *network == target.network
                    && owner.as_ref().is_some_and(|owner| owner.may_be(target))
            }
            _ => false,
        });
        let interface = (target.pod.clone(), target.ifname.clone());
        has_lease
            || self.world.has_interface(target)
            || self.possible_leftovers.contains(&interface)
            || self.has_other_gateway(target, before)
    }

    /// Whether the bridge has another IPv4 address than the network's gateway: without forceAddress the Go plugin
    /// fails.
    fn has_other_gateway(&self, target: &Target, before: &Snapshot) -> bool {
        let config = self.world.config(&target.network);
        let Some(gateway) = networks::gateway(config).filter(|_| networks::is_gateway(config))
        else {
            return false;
        };
        let bridge = config["bridge"].as_str().unwrap_or_default();
        let key = |address: &str| format!("address {bridge} {address}");
        let mut addresses = before.facts.keys();
        let is_other = |it: &String| it.starts_with(&key("")) && !it.contains(':');
        !before.facts.contains_key(&key(&gateway)) && addresses.any(is_other)
    }
}
