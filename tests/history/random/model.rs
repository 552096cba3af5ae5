//! The expected state: which attachments are live, and what they must have.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::Value;

use super::action::{Implementation, NetnsArgument, Options, Target};
use super::networks;
use super::snapshot::{Owner, Snapshot};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// ADD succeeded, and the attachment was not deleted.
    Live,
    /// The pod ended without DEL.
    Dead,
    /// A call was killed or failed: the state is unknown until a DEL succeeds.
    Unknown,
}

#[derive(Clone, Debug)]
pub struct Attachment {
    pub state: State,
    pub made_by: Implementation,
    pub config: Value,
    pub result: Value,
    pub addresses: Vec<IpAddr>,
    pub gateways: Vec<IpAddr>,
    /// The indices of its links on the host.
    pub links: BTreeSet<u64>,
    /// A foreign action removed or changed its lease, so its address may be assigned again.
    pub lost_lease: bool,
}

impl Attachment {
    /// An attachment in the state [`State::Unknown`].
    pub fn unknown(by: Implementation, config: &Value) -> Attachment {
        Attachment {
            state: State::Unknown,
            made_by: by,
            config: config.clone(),
            result: Value::Null,
            addresses: Vec::new(),
            gateways: Vec::new(),
            links: BTreeSet::new(),
            lost_lease: false,
        }
    }

    /// A live attachment with this result.
    pub fn live(by: Implementation, config: &Value, result: Value) -> Attachment {
        let ips = |key: &str| -> Vec<IpAddr> {
            let list = result["ips"].as_array().into_iter().flatten();
            let texts = list.filter_map(|ip| ip[key].as_str()?.split('/').next());
            texts.filter_map(|text| text.parse().ok()).collect()
        };
        let gateways = match networks::is_gateway(config) {
            true => ips("gateway"),
            false => Vec::new(),
        };
        Attachment {
            state: State::Live,
            addresses: ips("address"),
            gateways,
            result,
            ..Attachment::unknown(by, config)
        }
    }

    /// Whether an object of that owner may belong to this attachment: a MAC spoof check does not name its network.
    pub fn may_have(&self, owner: &Owner) -> bool {
        owner.network.is_some() || self.config["macspoofchk"] == true
    }

    pub fn is_masqueraded(&self) -> bool {
        self.config["ipMasq"] == true && networks::is_gateway(&self.config)
    }
}

/// All attachments without a successful DEL.
#[derive(Default)]
pub struct Model {
    pub attachments: BTreeMap<Target, Attachment>,
    /// Whether the boot ID changed. Leases without a live attachment are then stale.
    pub has_rebooted: bool,
}

impl Model {
    pub fn live(&self) -> impl Iterator<Item = (&Target, &Attachment)> {
        let all = self.attachments.iter();
        all.filter(|(_, attachment)| attachment.state == State::Live)
    }

    pub fn lives(&self, target: &Target) -> bool {
        let attachment = self.attachments.get(target);
        attachment.is_some_and(|it| it.state == State::Live)
    }

    /// Whether an object belongs to a live attachment other than `except`.
    pub fn is_of_live(&self, owner: &Owner, except: Option<&Target>) -> bool {
        let mut others = self.live().filter(|(target, _)| Some(*target) != except);
        others.any(|(target, attachment)| attachment.may_have(owner) && owner.may_be(target))
    }

    /// The attachments whose link DEL on a layer-2 network cannot distinguish from its own: without prevResult and
    /// leases a link of the Go plugin is identified only by its bridge and its name in the namespace.
    pub fn indistinguishable(&self, target: &Target, options: &Options) -> BTreeSet<Target> {
        let known = self.attachments.get(target);
        let has_result = known.is_some_and(|it| !it.result.is_null());
        let namespace = match &options.netns {
            NetnsArgument::Own => &target.pod,
            NetnsArgument::Of(pod) => pod,
            NetnsArgument::Unset | NetnsArgument::Missing => return BTreeSet::new(),
        };
        if target.network != "flat" || (has_result && !options.without_prev_result) {
            return BTreeSet::new();
        }
        let of_go = self.attachments.iter().filter(|(it, attachment)| {
            attachment.made_by == Implementation::Go
                && it.pod == *namespace
                && it.ifname == target.ifname
        });
        of_go.map(|(it, _)| it.clone()).collect()
    }

    /// Whether an object belongs to an attachment whose pod has not ended.
    pub fn may_be_of(&self, owner: &Owner) -> bool {
        let mut all = self.attachments.iter();
        all.any(|(target, attachment)| {
            attachment.state != State::Dead && attachment.may_have(owner) && owner.may_be(target)
        })
    }

    /// Whether a link belongs to an attachment whose pod has not ended.
    pub fn may_have_link(&self, index: u64) -> bool {
        let mut all = self.attachments.values();
        all.any(|attachment| attachment.state != State::Dead && attachment.links.contains(&index))
    }

    /// The live attachment with this link on the host.
    pub fn live_with_link(&self, index: u64) -> Option<&Target> {
        let mut live = self.live();
        let found = live.find(|(_, attachment)| attachment.links.contains(&index));
        found.map(|(target, _)| target)
    }

    /// Records which live attachments lost their link or lease to a foreign action.
    pub fn note_losses(&mut self, snapshot: &Snapshot) {
        for (target, attachment) in &mut self.attachments {
            let mut links = attachment.links.iter();
            let has_link = links.any(|index| snapshot.link_name(*index).is_some());
            if attachment.state == State::Live && !attachment.links.is_empty() && !has_link {
                attachment.state = State::Unknown;
            }
            if !networks::has_leases(&attachment.config) {
                continue;
            }
            let expected = format!("{}\r\n{}", target.pod, target.ifname);
            let is_held = |ip: &IpAddr| {
                let lease = snapshot.lease(&target.network, &ip.to_string());
                lease.is_some_and(|lease| lease.trim_end() == expected)
            };
            attachment.lost_lease |= !attachment.addresses.iter().all(is_held);
        }
    }
}

impl Owner {
    /// Whether the attachment matches all names of the owner.
    pub fn may_be(&self, target: &Target) -> bool {
        self.container == target.pod
            && self
                .network
                .as_ref()
                .is_none_or(|network| *network == target.network)
            && self
                .ifname
                .as_ref()
                .is_none_or(|ifname| *ifname == target.ifname)
    }
}
