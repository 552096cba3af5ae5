//! The `bridge` plugin: a container becomes a port of a bridge, with the addresses that IPAM gives it.
//!
//! The verbs are told here as short stories: [`config`] says what is asked, [`plan`] works out what will be made,
//! [`attach`] makes it. Knows neither files of leases nor text of rules: those are [`crate::ipam`] and
//! [`crate::masquerade`].

mod attach;
mod check;
pub mod config;
mod detach;
mod ensure;
mod gateway;
mod ownership;
mod passage;
pub mod plan;
mod ports;
pub mod restore;
mod spoof;
mod sweep;
mod uplink;
mod vlan;

use crate::bridge::attach::{Site, attach, require_free};
use crate::bridge::config::{BridgeConfig, Layer};
use crate::bridge::ensure::ensure_bridge;
use crate::bridge::plan::{Plan, host_interface};
use crate::bridge::spoof::Guard;
use crate::cni::Schema;
use crate::cni::conf::NetConf;
use crate::cni::request::{Args, Attachment, Request};
use crate::cni::result::AddResult;
use crate::error::Error;
use crate::host::journal;
use crate::host::netlink::Netlink;
use crate::host::netns::{Netns, OwnNetns};
use crate::host::signals;
use crate::ipam::{Ipam, Lease};
use crate::masquerade::{self, Masquerade, Scope};
use crate::undo::Undo;

/// ADD: a lease, a link and its masquerading, or none of them. Who cannot be told the result does not have it.
///
/// # Errors
/// Configuration and namespace are refused before anything is touched; a later failure is undone.
pub fn add(
    conf: &NetConf,
    request: &Request,
    who: &Attachment,
    netns: &str,
    tell: impl FnOnce(AddResult) -> Result<(), Error>,
) -> Result<(), Error> {
    signals::heed();
    let mut prepared = Prepared::new(conf, request, netns)?;
    let host = open_host()?;
    prepared.config.mtu = uplink::settle(&host, &prepared.config)?;
    let pod = open_pod(&prepared.netns, netns)?;
    let site = Site {
        host: &host,
        pod: &pod,
        netns: &prepared.netns,
    };
    let mut undo = Undo::default();
    prepared
        .carry_out(conf, who, &site, &mut undo)
        .and_then(tell)
        .map_err(|cause| signals::undisturbed(|| undo.unwind(cause)))
}

/// CHECK: whether an attachment is still as its ADD made it.
///
/// # Errors
/// The first difference found.
pub fn check(
    conf: &NetConf,
    request: &Request,
    who: &Attachment,
    netns: &str,
) -> Result<(), Error> {
    let Prepared {
        args: _,
        config,
        ipam,
        netns: namespace,
        previous: _,
    } = Prepared::new(conf, request, netns)?;
    if let Some(ipam) = &ipam {
        journal::phase("ipam", || ipam.check(who))?;
    }
    let host = open_host()?;
    let pod = open_pod(&namespace, netns)?;
    let site = Site {
        host: &host,
        pod: &pod,
        netns: &namespace,
    };
    check::check(&check::Expected::new(conf, config, who, netns)?, &site)
}

/// STATUS: whether an ADD could work now. Cheap, for it is asked every few seconds: where IPAM is host-local it runs no
/// process, and it writes nothing.
///
/// # Errors
/// Those of a configuration that ADD would refuse; code 50 for what is missing or used up; a delegate's as it is.
pub fn status(conf: &NetConf, request: &Request) -> Result<(), Error> {
    // CNI_ARGS are of an attachment, and there is none.
    let args = Args::default();
    let config = BridgeConfig::parse(conf, &args)?;
    let ipam = Ipam::parse_for_status(conf, request, &args)?;
    config.suits(Layer::of(ipam.as_ref()), conf.version)?;
    let Some(ipam) = ipam else { return Ok(()) };
    if let Some(policy) = &config.masquerade {
        masquerade::status(ipam.families().as_deref(), policy.backend)?;
    }
    ipam.status()
}

pub use detach::del;
pub use ensure::is_mac_fixed;
pub use gateway::forward;
pub use sweep::gc;

/// A request in which nothing is wrong.
struct Prepared {
    args: Args,
    config: BridgeConfig,
    ipam: Option<Ipam>,
    netns: Netns,
    /// Of the plugins before this one in a chain.
    previous: AddResult,
}

impl Prepared {
    fn new(conf: &NetConf, request: &Request, netns: &str) -> Result<Prepared, Error> {
        let args = Args::parse(&request.args)?;
        let config = BridgeConfig::parse(conf, &args)?;
        let ipam = Ipam::parse(conf, request, &args)?;
        config.suits(Layer::of(ipam.as_ref()), conf.version)?;
        let opened = Netns::open(netns, OwnNetns::allowed(request.own_netns_allowed));
        Ok(Prepared {
            args,
            config,
            ipam,
            netns: opened.map_err(|cause| cause.report(netns))?,
            previous: previous_in_chain(conf)?,
        })
    }

    fn reserve<'a>(
        &self,
        ipam: &'a Ipam,
        who: &'a Attachment,
        undo: &mut Undo<'a>,
    ) -> Result<Lease, Error> {
        let lease = ipam.reserve(who)?;
        let (held, locked) = (lease.held(), lease.held());
        undo.push(move || ipam.release(who, Some(held)));
        if self.config.masquerade.is_some() {
            // Kept to the end: should we be killed, DEL waits for what works on the rules.
            let locked = ipam.lock(&locked)?;
            undo.push(move || {
                drop(locked);
                Ok(())
            });
        }
        Ok(lease)
    }

    fn carry_out<'a>(
        &'a self,
        conf: &'a NetConf,
        who: &'a Attachment,
        site: &Site<'a>,
        undo: &mut Undo<'a>,
    ) -> Result<AddResult, Error> {
        // host-local refuses a second ADD by itself, under its lock.
        if let Some(Ipam::Delegate(_)) = self.ipam {
            require_free(&host_interface(&conf.name, who), &who.interface, site)?;
        }
        if self.config.vlans.is_some() {
            // Whether bridges can keep VLANs apart here shows when one is made; a lease would be too early.
            ensure_bridge(site.host, &self.config)?;
        }
        let guard = self.config.guarded.then(|| Guard::of(who)).transpose()?;
        let lease = match &self.ipam {
            None => Lease::default(),
            Some(ipam) => journal::phase("ipam", || self.reserve(ipam, who, undo))?,
        };
        signals::check()?;
        let alias = self.args.pod.as_deref().unwrap_or(who.container.as_str());
        let plan = Plan::new(&self.config, &conf.name, who, lease)?
            .with_alias(alias)
            .with_guard(guard);
        // The rules are on their way while the link is made: neither needs the other.
        let rules = Masquerade::of(&conf.name, who);
        let addresses = plan.addresses();
        let mut installing = None;
        if let Some(policy) = self.config.masquerade.as_ref()
            && !addresses.is_empty()
        {
            let (ours, owned) = (rules.clone(), plan.addresses());
            let owned = owned.iter().map(|address| address.address()).collect();
            // Before they are started: when one family cannot be, the other may be on its way.
            undo.push(move || ours.remove(owned, Scope::Addresses).finish());
            let install = || rules.install(&addresses, policy);
            installing = Some(journal::phase("masquerade", install)?);
        }
        let forwarding = self.config.forwarding.as_ref();
        if let Some(forwarding) = forwarding {
            let (host, bridge) = (site.host, &self.config.bridge);
            // Before the link is made, so that it is looked for containers after the link is gone.
            undo.push(move || passage::close_unused(host, bridge, forwarding));
        }
        let attached = journal::phase("link", || attach(&plan, &self.config, site, undo));
        let installed = installing.map_or(Ok(()), |installing| {
            journal::phase("masquerade", || installing.finish())
        });
        let facts = attached?;
        installed?;
        if let Some(forwarding) = forwarding {
            let install = || forwarding.install(&passage::families(&addresses));
            journal::phase("forward", install)?;
        }
        let sandbox = site.netns.path().to_string_lossy();
        let result = plan.into_result(&self.config.bridge, &facts, &sandbox);
        Ok(result.after(self.previous.clone()))
    }
}

/// What the result must keep. Before 0.3.0 there were no chains, and a result has no room for a second address.
fn previous_in_chain(conf: &NetConf) -> Result<AddResult, Error> {
    if conf.version.schema() == Schema::V0_1 {
        return Ok(AddResult::default());
    }
    Ok(conf.prev_result()?.unwrap_or_default())
}

/// A socket on the host's side.
///
/// # Errors
/// When none can be had.
pub fn open_host() -> Result<Netlink, Error> {
    Netlink::open().map_err(|cause| Error::failed(format!("cannot open a netlink socket: {cause}")))
}

fn open_pod(netns: &Netns, path: &str) -> Result<Netlink, Error> {
    Netlink::open_in(netns).map_err(|cause| cause.report(path))
}
