//! The `bandwidth` plugin: limits the rate of a container's veth, which another plugin created, in both directions.
//!
//! Packets to the container are queued where the host end sends them, packets from it at an [`ifb`].

pub mod config;
pub mod ifb;
mod shaper;

use crate::cni::environment::{DelTarget, Target};
use crate::cni::json::{KeyPaths, key_paths};
use crate::cni::names::NetworkName;
use crate::cni::request::Request;
use crate::cni::result::{AddResult, Interface};
use crate::error::{Error, Failures};
use crate::kernel::log;
use crate::kernel::netlink::{Kind, Link, Netlink};
use crate::kernel::netns::OwnNetns;
use crate::link::namespace::{AttachContext, host_netlink, netlink, open_existing};
use crate::link::{Context, look_up, peer_on_host};
use crate::net::IfName;
use crate::plugins::bandwidth::config::{BandwidthConfig, BandwidthKeys, Limit, LimitKeys};
use crate::plugins::bandwidth::ifb::Identity;
use crate::plugins::bandwidth::shaper::Shaper;
use crate::plugins::plugin::Plugin;
use crate::undo::Undo;

/// A valid request for ADD, CHECK or STATUS.
pub struct Bandwidth {
    network: NetworkName,
    config: BandwidthConfig,
    previous: Option<AddResult>,
    own_netns: OwnNetns,
}

impl Plugin for Bandwidth {
    const KEYS: &'static [fn() -> KeyPaths] = &[key_paths::<BandwidthKeys>, key_paths::<LimitKeys>];

    fn parse(request: &Request) -> Result<Bandwidth, Error> {
        let conf = &request.conf;
        Ok(Bandwidth {
            network: conf.name.clone(),
            config: BandwidthConfig::parse(&conf.root())?,
            previous: conf.prev_result()?,
            own_netns: OwnNetns::allowed(request.own_netns_allowed),
        })
    }

    fn add<'a>(&'a self, target: &'a Target, undo: &mut Undo<'a>) -> Result<AddResult, Error> {
        let mut result = self.previous("must be called as chained plugin")?.clone();
        if self.config.is_empty() {
            return Ok(result);
        }
        let context = AttachContext::open(&target.netns, self.own_netns)?;
        let veth = host_veth(&context, &target.attachment.interface, &result)?;
        let identity = Identity::of(&self.network, &target.attachment);
        log::timed_span("bandwidth", || {
            // Of an earlier ADD, or left by the Go plugin.
            remove(&context.host, &identity, Some(&veth))?;
            let (host, removed) = (context.host.clone(), veth.clone());
            let of_undo = Identity::of(&self.network, &target.attachment);
            undo.push(move || remove(&host, &of_undo, Some(&removed)));
            let ifb = self.install(&context.host, &veth, &identity)?;
            result.interfaces.extend(ifb.map(|ifb| Interface {
                mac: ifb.mac.map(|mac| mac.to_string()).unwrap_or_default(),
                name: ifb.name,
                ..Interface::default()
            }));
            Ok(result)
        })
    }

    /// Reads only what names resources: invalid limits or an invalid prevResult do not prevent the removal.
    fn del(request: &Request, target: &DelTarget) -> Result<(), Error> {
        let own_netns = OwnNetns::allowed(request.own_netns_allowed);
        let host = host_netlink()?;
        let identity = Identity::of(&request.conf.name, &target.attachment);
        let mut veth = None;
        if let Some(netns) = open_existing(target.netns.as_deref(), own_netns)? {
            let pod = netlink(&netns)?;
            let interface = &target.attachment.interface;
            if let Some(link) = look_up(&pod, interface)?.filter(|it| it.kind == Kind::Veth) {
                veth = peer_on_host(&host, &link).context("look up the peer of", interface)?;
            }
        }
        log::timed_span("bandwidth", || remove(&host, &identity, veth.as_ref()))
    }

    fn check(&self, target: &Target) -> Result<(), Error> {
        let previous = self.previous("Required prevResult missing")?;
        if self.config.is_empty() {
            return Ok(());
        }
        let context = AttachContext::open(&target.netns, self.own_netns)?;
        let host = &context.host;
        let veth = host_veth(&context, &target.attachment.interface, previous)?;
        if let Some(limit) = self.config.ingress {
            self.shaper(limit).check(host, &veth)?;
        }
        let Some(limit) = self.config.egress else {
            return Ok(());
        };
        let identity = Identity::of(&self.network, &target.attachment);
        let existing = identity.existing(host, Some(&veth))?;
        for ifb in &existing {
            if ifb::is_redirected(host, &veth, ifb)? {
                if !ifb.is_up {
                    return Err(Error::failed(format!("bandwidth: {} is down", ifb.name)));
                }
                return self.shaper(limit).check(host, ifb);
            }
        }
        let what = format!(
            "bandwidth: packets that {} receives are not limited",
            veth.name
        );
        let cause = match existing.first() {
            Some(ifb) => format!("{what}: they are not redirected to {}", ifb.name),
            None => format!("{what}: the ifb does not exist"),
        };
        Err(Error::failed(cause).details("run DEL, then ADD again"))
    }

    fn gc(request: &Request) -> Result<(), Error> {
        match request.conf.valid_attachments()? {
            Some(valid) => ifb::gc(&host_netlink()?, &request.conf.name, &valid),
            None => Ok(()),
        }
    }
}

impl Bandwidth {
    fn previous(&self, missing: &str) -> Result<&AddResult, Error> {
        let error = || Error::failed(format!("bandwidth: {missing}: prevResult is missing"));
        self.previous.as_ref().ok_or_else(error)
    }

    fn shaper(&self, limit: Limit) -> Shaper {
        Shaper {
            limit,
            low_latency: self.config.low_latency,
        }
    }

    /// Returns the ifb if packets from the container are limited.
    fn install(
        &self,
        host: &Netlink,
        veth: &Link,
        identity: &Identity,
    ) -> Result<Option<Link>, Error> {
        if let Some(limit) = self.config.ingress {
            self.shaper(limit).install(host, veth)?;
        }
        let Some(limit) = self.config.egress else {
            return Ok(None);
        };
        let ifb = identity.create(host, veth)?;
        self.shaper(limit).install(host, &ifb)?;
        ifb::redirect(host, veth, &ifb)?;
        Ok(Some(ifb))
    }
}

/// The host end of the container's interface, which must be in the result of the previous plugins.
fn host_veth(
    context: &AttachContext,
    interface: &IfName,
    previous: &AddResult,
) -> Result<Link, Error> {
    let failed = |cause: String| Err(Error::failed(format!("bandwidth: {cause}")));
    let Some(link) = look_up(&context.pod, interface)? else {
        return failed(format!("the container has no interface {interface}"));
    };
    if link.kind != Kind::Veth {
        let kind = link.kind;
        return failed(format!(
            "container interface {interface} is a {kind} and has no veth peer"
        ));
    }
    let peer = peer_on_host(&context.host, &link).context("look up the peer of", interface)?;
    let Some(veth) = peer else {
        return failed(format!(
            "the peer of container interface {interface} is not in host ns"
        ));
    };
    let mut on_host = previous
        .interfaces
        .iter()
        .filter(|it| it.sandbox.is_empty());
    match on_host.any(|it| it.name == veth.name) {
        true => Ok(veth),
        false => failed(format!(
            "prevResult has no host interface {}, the veth peer of {interface} found in host ns",
            veth.name
        )),
    }
}

/// Removes the limits of an attachment, those of the Go plugin too: the redirection before the ifb, because packets
/// redirected to a deleted link are dropped.
fn remove(host: &Netlink, identity: &Identity, veth: Option<&Link>) -> Result<(), Error> {
    let mut failures = Failures::default();
    let ifbs = failures
        .note(identity.existing(host, veth))
        .unwrap_or_default();
    if let Some(veth) = veth {
        failures.note(ifb::remove_redirection(host, veth, &ifbs));
        failures.note(shaper::remove(host, veth));
    }
    for ifb in &ifbs {
        failures.note(ifb::delete(host, ifb));
    }
    failures.into_result()
}
