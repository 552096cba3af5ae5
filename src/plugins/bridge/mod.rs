//! The `bridge` plugin: connects a container to a bridge with a veth pair, with addresses from IPAM.
//!
//! An ADD parses the configuration ([`config`]), reserves addresses ([`crate::ipam`]), computes a [`plan`], and applies it
//! ([`attach`]) while masquerading ([`crate::netfilter::masquerade`]) is installed.

mod add;
mod check;
pub mod config;
mod del;
mod ensure;
mod forward_accept;
mod gateway;
mod gc;
mod ownership;
pub mod plan;
pub mod reconcile;
pub mod role;
mod uplink;
mod vlan;
mod vlan_ports;

use crate::cni::Schema;
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
use crate::kernel::netns::OwnNetns;
use crate::kernel::signals;
use crate::kernel::threads::join;
use crate::link::namespace::AttachContext;
use crate::link::plan::check_routes;
use crate::link::veth::require_unused_names;
use crate::netfilter::mac_spoof_check::MacSpoofCheck;
use crate::netfilter::masquerade::{self, Backend, Evidence, Masquerade, MasqueradeKeys, Scope};
use crate::plugins::bridge::add::attach;
use crate::plugins::bridge::config::{AddressingMode, BridgeConfig, BridgeKeys};
use crate::plugins::bridge::ensure::ensure_bridge;
use crate::plugins::bridge::plan::{Plan, PlanInput};
use crate::plugins::bridge::vlan::VlanKeys;
use crate::plugins::plugin::Plugin;
use crate::undo::Undo;

pub use del::detach;
pub use ensure::is_mac_fixed;
pub use gateway::forward;

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
        let mtu = uplink::resolve_mtu(&context.host, &self.config)?;
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
        let own_netns = OwnNetns::allowed(request.own_netns_allowed);
        del::del(request, target, own_netns)
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
        gc::gc(&request.conf, &request.cni_path)
    }

    /// With host-local and static, runs no process and writes nothing: containerd requests STATUS every few seconds.
    fn status(&self) -> Result<(), Error> {
        let Some(ipam) = &self.ipam else {
            return Ok(());
        };
        if let Some(policy) = &self.config.masquerade {
            masquerade::status(ipam.families().as_deref(), policy.backend)?;
        }
        ipam.status()
    }
}

impl Bridge {
    fn reserve<'a>(
        &'a self,
        ipam: &'a Ipam,
        attachment: &'a Attachment,
        undo: &mut Undo<'a>,
    ) -> Result<Lease, Error> {
        let lease = ipam.reserve(attachment)?;
        let (leases, held) = (ipam.leases(), lease.held());
        let locked = leases.clone();
        undo.push(move || leases.release(attachment, Some(held)));
        if self.config.masquerade.is_some() {
            // Kept until the process ends: if it is killed, DEL waits for iptables programs that are still running.
            let locked = locked.lock(&lease.held())?;
            undo.push(move || {
                drop(locked);
                Ok(())
            });
        }
        Ok(lease)
    }

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
        let lease = match &self.ipam {
            None => Lease::default(),
            Some(ipam) => log::timed_span("ipam", || self.reserve(ipam, attachment, undo))?,
        };
        signals::check()?;
        let plan = Plan::new(input, lease)?;
        // Rules and link are independent. A program adds the rules while the link is created.
        let rules = Masquerade::of(&self.network, attachment);
        let addresses = &plan.veth.addresses;
        let policy = self.config.masquerade.as_ref();
        let policy = policy.filter(|_| !addresses.is_empty());
        if policy.is_some() {
            let masquerade = rules.clone();
            let owned = addresses.iter().map(|address| address.address()).collect();
            // Pushed before the installation, which may fail for one address family only.
            undo.push(move || masquerade.remove(owned, Scope::Addresses, Evidence::Started));
        }
        let forwarding = self.config.forwarding.as_ref();
        if let Some(forwarding) = forwarding {
            let (host, bridge) = (context.host.clone(), &self.config.bridge);
            // Pushed before the link, so that undo looks for remaining containers after the link is deleted.
            undo.push(move || forward_accept::remove_if_unused_on(&host, bridge, forwarding));
        }
        let mut attach = || log::timed_span("link", || attach(&plan, &self.config, context, undo));
        let install = || policy.map_or(Ok(()), |policy| rules.install(addresses, policy));
        let backend = policy.map(|policy| masquerade::backend_for(addresses, policy));
        let (installed, attached) = match backend {
            Some(Backend::Iptables) => join("masquerade", install, attach),
            // A transaction over netlink takes less time than a thread would save.
            Some(Backend::Nftables) => {
                log::timed_span("masquerade", install)?;
                (Ok(()), attach())
            }
            None => (Ok(()), attach()),
        };
        let observed = attached?;
        installed?;
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

/// prevResult. CNI versions before 0.3.0 have no chains.
fn previous_in_chain(conf: &NetConf) -> Result<Option<AddResult>, Error> {
    match conf.version.schema() {
        Schema::V0_1 => Ok(None),
        _ => conf.prev_result(),
    }
}
