//! The `bridge` plugin: connects a container to a bridge with a veth pair, with addresses from IPAM.
//!
//! An ADD parses the configuration ([`config`]), reserves addresses ([`crate::ipam`]), computes a [`plan`], and applies it
//! ([`attach`]) while masquerading ([`crate::netfilter::masquerade`]) is installed.

mod add;
mod check;
pub mod config;
mod ensure;
mod forward_accept;
mod gateway;
pub mod plan;
pub mod reconcile;
pub mod role;
mod vlan;
mod vlan_ports;

use std::path::PathBuf;

use crate::cni::args::Args;
use crate::cni::conf::NetConf;
use crate::cni::environment::{DelTarget, Target};
use crate::cni::json::{KeyPaths, key_paths};
use crate::cni::names::{Attachment, NetworkName};
use crate::cni::request::Request;
use crate::cni::result::AddResult;
use crate::error::Error;
use crate::ipam::config::HostLocalKeys;
use crate::ipam::static_addresses::StaticKeys;
use crate::ipam::{Ipam, Lease};
use crate::kernel::log;
use crate::kernel::netns::{Netns, OwnNetns};
use crate::kernel::signals;
use crate::link::namespace::AttachContext;
use crate::link::plan::check_routes;
use crate::link::veth::require_unused_names;
use crate::netfilter::mac_spoof_check::{self, MacSpoofCheck};
use crate::netfilter::masquerade::{Masquerade, MasqueradeKeys};
use crate::plugins::attachment::del::{self, Detachment};
use crate::plugins::attachment::{
    self, HostEnd, attach_masqueraded, gc, previous_in_chain, reserve,
};
use crate::plugins::bridge::add::attach;
use crate::plugins::bridge::config::{AddressingMode, BridgeConfig, BridgeKeys, bridge_of};
use crate::plugins::bridge::ensure::ensure_bridge;
use crate::plugins::bridge::plan::{Plan, PlanInput};
use crate::plugins::bridge::vlan::VlanKeys;
use crate::plugins::plugin::Plugin;
use crate::undo::Undo;

pub use ensure::is_mac_fixed;

/// A valid request for ADD, CHECK or STATUS.
pub struct Bridge {
    network: NetworkName,
    args: Args,
    config: BridgeConfig,
    ipam: Option<Ipam>,
    /// prevResult: the result of the previous plugin in the chain for ADD, that of the ADD for CHECK. ADD ignores an
    /// invalid one, as the Go plugin does; CHECK reports the error.
    previous: Result<Option<AddResult>, Error>,
    own_netns: OwnNetns,
}

impl Plugin for Bridge {
    const KEYS: &'static [fn() -> KeyPaths] = &[
        key_paths::<BridgeKeys>,
        key_paths::<VlanKeys>,
        key_paths::<MasqueradeKeys>,
        key_paths::<HostLocalKeys>,
        key_paths::<StaticKeys>,
    ];

    fn parse(request: &Request) -> Result<Bridge, Error> {
        let conf = &request.conf;
        let args = Args::parse(&request.args)?;
        let config = BridgeConfig::parse(conf, &args)?;
        let ipam = Ipam::parse(conf, &request.cni_path, &args)?;
        config.validate(AddressingMode::of(ipam.as_ref()), conf.version)?;
        check_routes(ipam.as_ref().map_or(&[], Ipam::routes))?;
        conf.root().object("prevResult")?;
        Ok(Bridge {
            network: conf.name.clone(),
            args,
            config,
            ipam,
            previous: previous_in_chain(conf),
            own_netns: OwnNetns::allowed(request.own_netns_allowed),
        })
    }

    fn add<'a>(&'a self, target: &'a Target, undo: &mut Undo<'a>) -> Result<AddResult, Error> {
        if let Some(ipam) = &self.ipam {
            ipam.locate()?;
        }
        let context = AttachContext::open(&target.netns, self.own_netns)?;
        let mtu = self.config.resolve_mtu(&context.host)?;
        let input = PlanInput {
            config: &self.config,
            mtu,
            network: &self.network,
            attachment: &target.attachment,
            pod: self.args.pod.as_deref(),
            spoof_check: self
                .config
                .mac_spoof_check
                .then(|| MacSpoofCheck::of(&self.network, &target.attachment))
                .transpose()?,
        };
        self.attach(input, &context, undo)
    }

    fn del(request: &Request, target: &DelTarget) -> Result<(), Error> {
        let netns = del::open_netns(request, target)?;
        detach(&request.conf, &request.cni_path, &target.attachment, netns)
    }

    fn check(&self, target: &Target) -> Result<(), Error> {
        if let Some(ipam) = &self.ipam {
            ipam.locate()?;
            log::timed_span("ipam", || ipam.check(&target.attachment))?;
        }
        let context = AttachContext::open(&target.netns, self.own_netns)?;
        let expected = check::Expected::new(self, target)?;
        check::check(&expected, &context)
    }

    fn gc(request: &Request) -> Result<(), Error> {
        let conf = &request.conf;
        let host_end = HostEnd::PortOf(bridge_of(&conf.root()));
        gc::gc(
            conf,
            &request.cni_path,
            &host_end,
            |kept, host, failures| {
                failures.note(mac_spoof_check::gc(&conf.name, kept, host));
                failures.note(forward_accept::remove_if_unused(host, conf));
            },
        )
    }

    fn status(&self) -> Result<(), Error> {
        let policy = self.config.masquerade.as_ref();
        let status = |ipam| attachment::status(ipam, policy);
        self.ipam.as_ref().map_or(Ok(()), status)
    }
}

impl Bridge {
    fn attach<'a>(
        &'a self,
        input: PlanInput<'a>,
        context: &AttachContext,
        undo: &mut Undo<'a>,
    ) -> Result<AddResult, Error> {
        let attachment = input.attachment;
        // host-local rejects a second ADD itself, under its lock.
        if let Some(Ipam::Static(_) | Ipam::Delegate(_)) = self.ipam {
            require_unused_names(
                &attachment.host_interface(&self.network),
                &attachment.interface,
                context,
            )?;
        }
        if self.config.vlans.is_some() {
            // Creating the bridge shows whether the kernel supports VLAN filtering, before a lease is reserved.
            ensure_bridge(&context.host, &self.config, input.mtu)?;
        }
        let policy = self.config.masquerade.as_ref();
        let lease = match &self.ipam {
            None => Lease::default(),
            Some(ipam) => log::timed_span("ipam", || reserve(ipam, attachment, policy, undo))?,
        };
        signals::check()?;
        let plan = Plan::new(input, lease)?;
        let forwarding = self.config.forwarding.as_ref();
        if let Some(forwarding) = forwarding {
            let (host, bridge) = (context.host.clone(), &self.config.bridge);
            // Pushed before the link, so that undo looks for remaining containers after the link is deleted.
            undo.push(move || forward_accept::remove_if_unused_on(&host, bridge, forwarding));
        }
        let rules = Masquerade::of(&self.network, attachment);
        let addresses = &plan.veth.addresses;
        let observed = attach_masqueraded(&rules, (addresses, policy), undo, |undo| {
            attach(&plan, &self.config, context, undo)
        })?;
        if let Some(forwarding) = forwarding {
            let install = || forwarding.install(&forward_accept::families(addresses));
            log::timed_span("forward", install)?;
        }
        let sandbox = context.netns.path().to_string_lossy();
        let result = plan.into_result(&self.config.bridge, &observed, &sandbox);
        let previous = self.previous.clone().ok().flatten();
        Ok(result.followed_by(previous.unwrap_or_default()))
    }
}

/// Removes an attachment; see [`del::Detachment::detach`]. `netns` is the container's namespace, if it still exists.
///
/// # Errors
/// If something could not be removed.
pub fn detach(
    conf: &NetConf,
    cni_path: &[PathBuf],
    attachment: &Attachment,
    netns: Result<Option<Netns>, Error>,
) -> Result<(), Error> {
    let detachment = Detachment {
        conf,
        cni_path,
        attachment,
        host_end: HostEnd::PortOf(bridge_of(&conf.root())),
    };
    detachment.detach(netns, |host, failures| {
        // If the name is too long for the check's chains, there is none.
        failures.note(
            MacSpoofCheck::of(&conf.name, attachment)
                .map_or(Ok(()), |spoof_check| spoof_check.remove(host)),
        );
        failures.note(log::timed_span("forward", || {
            forward_accept::remove_if_unused(host, conf)
        }));
    })
}
