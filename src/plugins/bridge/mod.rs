//! The `bridge` plugin: a container becomes a port of a bridge, with the addresses that IPAM gives it.
//!
//! The verbs are told here as short stories: [`config`] says what is asked, [`plan`] works out what will be made,
//! [`attach`] makes it. Knows neither files of leases nor text of rules: those are [`crate::ipam`] and
//! [`crate::netfilter::masquerade`].

mod add;
mod check;
pub mod config;
mod del;
mod ensure;
mod forward_accept;
mod gateway;
mod gc;
mod links;
mod ownership;
pub mod plan;
pub mod reconcile;
mod uplink;
mod vlan;
mod vlan_ports;

use crate::cni::Schema;
use crate::cni::args::Args;
use crate::cni::conf::NetConf;
use crate::cni::names::Attachment;
use crate::cni::request::Request;
use crate::cni::result::AddResult;
use crate::error::Error;
use crate::ipam::{Ipam, Lease};
use crate::kernel::log;
use crate::kernel::netlink::Netlink;
use crate::kernel::netns::{Netns, OwnNetns};
use crate::kernel::signals;
use crate::netfilter::mac_spoof_check::MacSpoofCheck;
use crate::netfilter::masquerade::{self, Evidence, Masquerade, Scope};
use crate::plugins::bridge::add::{AttachContext, attach, require_free};
use crate::plugins::bridge::config::{AddressingMode, BridgeConfig};
use crate::plugins::bridge::ensure::ensure_bridge;
use crate::plugins::bridge::plan::{Plan, host_interface};
use crate::undo::Undo;

/// ADD: a lease, a link and its masquerading, or none of them. Who cannot be told the result does not have it.
///
/// # Errors
/// Configuration and namespace are refused before anything is touched; a later failure is undone.
pub fn add(
    conf: &NetConf,
    request: &Request,
    attachment: &Attachment,
    netns: &str,
    tell: impl FnOnce(AddResult) -> Result<(), Error>,
) -> Result<(), Error> {
    signals::enable_cancellation();
    let mut prepared = Prepared::new(conf, request, netns)?;
    let host = open_host()?;
    prepared.config.mtu = uplink::settle(&host, &prepared.config)?;
    let pod = open_pod(&prepared.netns, netns)?;
    let context = AttachContext {
        host: &host,
        pod: &pod,
        netns: &prepared.netns,
    };
    let mut undo = Undo::default();
    prepared
        .apply(conf, attachment, &context, &mut undo)
        .and_then(tell)
        .map_err(|cause| signals::uncancellable(|| undo.unwind(cause)))
}

/// CHECK: whether an attachment is still as its ADD made it.
///
/// # Errors
/// The first difference found.
pub fn check(
    conf: &NetConf,
    request: &Request,
    attachment: &Attachment,
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
        log::timed_span("ipam", || ipam.check(attachment))?;
    }
    let host = open_host()?;
    let pod = open_pod(&namespace, netns)?;
    let context = AttachContext {
        host: &host,
        pod: &pod,
        netns: &namespace,
    };
    check::check(
        &check::Expected::new(conf, config, attachment, netns)?,
        &context,
    )
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
    config.validate(AddressingMode::of(ipam.as_ref()), conf.version)?;
    let Some(ipam) = ipam else { return Ok(()) };
    plan::check_routes(ipam.routes())?;
    if let Some(policy) = &config.masquerade {
        masquerade::status(ipam.families().as_deref(), policy.backend)?;
    }
    ipam.status()
}

pub use del::del;
pub use ensure::is_mac_fixed;
pub use gateway::forward;
pub use gc::gc;

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
        config.validate(AddressingMode::of(ipam.as_ref()), conf.version)?;
        plan::check_routes(ipam.as_ref().map_or(&[], Ipam::routes))?;
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
        attachment: &'a Attachment,
        undo: &mut Undo<'a>,
    ) -> Result<Lease, Error> {
        let lease = ipam.reserve(attachment)?;
        let (held, locked) = (lease.held(), lease.held());
        undo.push(move || ipam.release(attachment, Some(held)));
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

    fn apply<'a>(
        &'a self,
        conf: &'a NetConf,
        attachment: &'a Attachment,
        context: &AttachContext<'a>,
        undo: &mut Undo<'a>,
    ) -> Result<AddResult, Error> {
        // host-local refuses a second ADD by itself, under its lock.
        if let Some(Ipam::Delegate(_)) = self.ipam {
            require_free(
                &host_interface(&conf.name, attachment),
                &attachment.interface,
                context,
            )?;
        }
        if self.config.vlans.is_some() {
            // Whether bridges can keep VLANs apart here shows when one is made; a lease would be too early.
            ensure_bridge(context.host, &self.config)?;
        }
        let spoof_check = self
            .config
            .mac_spoof_check
            .then(|| MacSpoofCheck::of(&conf.name, attachment))
            .transpose()?;
        let lease = match &self.ipam {
            None => Lease::default(),
            Some(ipam) => log::timed_span("ipam", || self.reserve(ipam, attachment, undo))?,
        };
        signals::check()?;
        let alias = self
            .args
            .pod
            .as_deref()
            .unwrap_or(attachment.container.as_str());
        let plan = Plan::new(&self.config, &conf.name, attachment, lease)?
            .with_alias(alias)
            .with_spoof_check(spoof_check);
        // The rules are on their way while the link is made: neither needs the other.
        let rules = Masquerade::of(&conf.name, attachment);
        let addresses = plan.addresses();
        let mut installing = None;
        if let Some(policy) = self.config.masquerade.as_ref()
            && !addresses.is_empty()
        {
            let (ours, owned) = (rules.clone(), plan.addresses());
            let owned = owned.iter().map(|address| address.address()).collect();
            // Before they are started: when one family cannot be, the other may be on its way.
            let remove = move || ours.remove(owned, Scope::Addresses, Evidence::Started);
            undo.push(move || remove().finish());
            let install = || rules.install(&addresses, policy);
            installing = Some(log::timed_span("masquerade", install)?);
        }
        let forwarding = self.config.forwarding.as_ref();
        if let Some(forwarding) = forwarding {
            let (host, bridge) = (context.host, &self.config.bridge);
            // Before the link is made, so that it is looked for containers after the link is gone.
            undo.push(move || forward_accept::remove_if_unused_on(host, bridge, forwarding));
        }
        let attached = log::timed_span("link", || attach(&plan, &self.config, context, undo));
        let installed = installing.map_or(Ok(()), |installing| {
            log::timed_span("masquerade", || installing.finish())
        });
        let facts = attached?;
        installed?;
        if let Some(forwarding) = forwarding {
            let install = || forwarding.install(&forward_accept::families(&addresses));
            log::timed_span("forward", install)?;
        }
        let sandbox = context.netns.path().to_string_lossy();
        let result = plan.into_result(&self.config.bridge, &facts, &sandbox);
        Ok(result.after(self.previous.clone()))
    }
}

/// What the result must keep. Before 0.3.0 there were no chains, and a result has no room for a second address. What is not
/// a result is ignored, as the Go plugin ignores every previous result.
fn previous_in_chain(conf: &NetConf) -> Result<AddResult, Error> {
    conf.root().object("prevResult")?;
    if conf.version.schema() == Schema::V0_1 {
        return Ok(AddResult::default());
    }
    Ok(conf.prev_result().ok().flatten().unwrap_or_default())
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
