//! The `ptp` plugin: connects a container to the host with a veth pair, without a bridge. The host has a route to each of
//! the container's addresses, and the container reaches everything, also its own subnet, through its gateway on the host.

mod check;
mod plan;

use serde::{Deserialize, Serialize};

use crate::cni::args::Args;
use crate::cni::environment::{DelTarget, Target};
use crate::cni::json::{KeyPaths, is_unset, key_paths};
use crate::cni::names::NetworkName;
use crate::cni::request::Request;
use crate::cni::result::{AddResult, Dns};
use crate::error::{Code, Error};
use crate::ipam::Ipam;
use crate::ipam::config::HostLocalKeys;
use crate::ipam::static_addresses::StaticKeys;
use crate::kernel::log;
use crate::kernel::netns::OwnNetns;
use crate::kernel::signals;
use crate::link::namespace::AttachContext;
use crate::link::plan::check_routes;
use crate::link::veth::require_unused_names;
use crate::netfilter::masquerade::{Masquerade, MasqueradeKeys, Policy};
use crate::plugins::attachment::del::{self, Detachment};
use crate::plugins::attachment::mtu::Mtu;
use crate::plugins::attachment::{
    self, HostEnd, attach_masqueraded, gc, parse_dns, previous_in_chain, reserve,
};
use crate::plugins::plugin::Plugin;
use crate::plugins::ptp::plan::{Plan, PlanInput};
use crate::undo::Undo;

/// The keys of the plugin, without those of masquerading and IPAM.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct PtpKeys {
    #[serde(skip_serializing_if = "is_unset")]
    pub mtu: Mtu,
}

/// A valid request for ADD, CHECK or STATUS.
pub struct Ptp {
    network: NetworkName,
    args: Args,
    mtu: Mtu,
    /// `None` without `ipMasq`.
    masquerade: Option<Policy>,
    /// DNS settings that replace those of IPAM.
    dns: Option<Dns>,
    ipam: Ipam,
    /// prevResult. ADD ignores an invalid one; CHECK reports the error.
    previous: Result<Option<AddResult>, Error>,
    own_netns: OwnNetns,
}

impl Plugin for Ptp {
    const KEYS: &'static [fn() -> KeyPaths] = &[
        key_paths::<PtpKeys>,
        key_paths::<MasqueradeKeys>,
        key_paths::<HostLocalKeys>,
        key_paths::<StaticKeys>,
    ];

    fn parse(request: &Request) -> Result<Ptp, Error> {
        let conf = &request.conf;
        let root = conf.root();
        let keys: PtpKeys = root.read()?;
        let args = Args::parse(&request.args)?;
        let ipam = Ipam::parse(conf, &request.cni_path, &args)?.ok_or_else(|| {
            let msg =
                "configuration: ipam.type is missing: ptp routes to the container's addresses";
            Error::new(Code::INVALID_CONFIG, msg).details(
                "set ipam, for example {\"type\": \"host-local\", \"subnet\": \"10.1.2.0/24\"}",
            )
        })?;
        check_routes(ipam.routes())?;
        root.object("prevResult")?;
        Ok(Ptp {
            network: conf.name.clone(),
            args,
            mtu: keys.mtu,
            masquerade: Policy::parse(&root)?,
            dns: parse_dns(&root)?,
            ipam,
            previous: previous_in_chain(conf),
            own_netns: OwnNetns::allowed(request.own_netns_allowed),
        })
    }

    fn add<'a>(&'a self, target: &'a Target, undo: &mut Undo<'a>) -> Result<AddResult, Error> {
        self.ipam.locate()?;
        let attachment = &target.attachment;
        let context = AttachContext::open(&target.netns, self.own_netns)?;
        // host-local rejects a second ADD itself, under its lock.
        if !matches!(self.ipam, Ipam::HostLocal(_)) {
            let host = attachment.host_interface(&self.network);
            require_unused_names(&host, &attachment.interface, &context)?;
        }
        let mtu = self.mtu.resolve(&context.host, || Ok(None))?;
        let policy = self.masquerade.as_ref();
        let lease = log::timed_span("ipam", || reserve(&self.ipam, attachment, policy, undo))?;
        signals::check()?;
        let input = PlanInput {
            network: &self.network,
            attachment,
            pod: self.args.pod.as_deref(),
            mtu,
            dns: self.dns.as_ref(),
        };
        let plan = Plan::new(input, lease)?;
        let rules = Masquerade::of(&self.network, attachment);
        let addresses = &plan.veth.addresses;
        let host_mac = attach_masqueraded(&rules, (addresses, policy), undo, |undo| {
            plan.attach(&context, undo)
        })?;
        let sandbox = context.netns.path().to_string_lossy();
        let result = plan.into_result(host_mac, &sandbox);
        let previous = self.previous.clone().ok().flatten();
        Ok(result.followed_by(previous.unwrap_or_default()))
    }

    fn del(request: &Request, target: &DelTarget) -> Result<(), Error> {
        let netns = del::open_netns(request, target)?;
        let detachment = Detachment {
            conf: &request.conf,
            cni_path: &request.cni_path,
            attachment: &target.attachment,
            host_end: HostEnd::Routed,
        };
        detachment.detach(netns, |_, _| ())
    }

    fn check(&self, target: &Target) -> Result<(), Error> {
        self.ipam.locate()?;
        log::timed_span("ipam", || self.ipam.check(&target.attachment))?;
        let context = AttachContext::open(&target.netns, self.own_netns)?;
        check::check(self, target, &context)
    }

    fn gc(request: &Request) -> Result<(), Error> {
        let end = HostEnd::Routed;
        gc::gc(&request.conf, &request.cni_path, &end, |_, _, _| ())
    }

    fn status(&self) -> Result<(), Error> {
        attachment::status(&self.ipam, self.masquerade.as_ref())
    }
}
