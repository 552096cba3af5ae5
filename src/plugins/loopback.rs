//! The `loopback` plugin: brings up `lo` in a container.

use crate::cni::environment::{DelTarget, Target};
use crate::cni::request::Request;
use crate::cni::result::{AddResult, Interface, IpConfig};
use crate::error::Error;
use crate::kernel::log;
use crate::kernel::netlink::{Link, Netlink, NetlinkError};
use crate::kernel::netns::OwnNetns;
use crate::link::namespace;
use crate::net::IfName;
use crate::plugins::plugin::Plugin;
use crate::undo::Undo;

/// A valid request. The plugin has no keys of its own.
pub struct Loopback {
    previous: Option<AddResult>,
    own_netns: OwnNetns,
}

impl Plugin for Loopback {
    fn parse(request: &Request) -> Result<Loopback, Error> {
        Ok(Loopback {
            previous: request.conf.prev_result()?,
            own_netns: OwnNetns::allowed(request.own_netns_allowed),
        })
    }

    /// Brings up `lo`; the kernel adds its addresses. A prevResult is passed through.
    fn add<'a>(&'a self, target: &'a Target, _undo: &mut Undo<'a>) -> Result<AddResult, Error> {
        let netns = &target.netns;
        let pod = open(netns, self.own_netns)?;
        let link = loopback_link(&pod)?;
        log::timed_span("link", || pod.set_up(link.index))
            .map_err(|cause| failed("bring up", cause))?;
        let addresses = pod
            .addresses(link.index)
            .map_err(|cause| failed("list addresses of", cause))?;
        if let Some(other) = addresses.iter().find(|a| !a.cidr.address().is_loopback()) {
            let msg = format!(
                "lo in {netns} has the address {}, which is not a loopback address",
                other.cidr
            );
            return Err(Error::failed(msg).details("remove it from the container's namespace"));
        }
        Ok(self.previous.clone().unwrap_or_else(|| AddResult {
            interfaces: vec![Interface {
                name: "lo".to_owned(),
                mac: "00:00:00:00:00:00".to_owned(),
                sandbox: netns.clone(),
                ..Interface::default()
            }],
            ips: addresses
                .iter()
                .map(|a| IpConfig {
                    interface: Some(0),
                    address: a.cidr,
                    gateway: None,
                })
                .collect(),
            ..AddResult::default()
        }))
    }

    /// Takes down `lo`, if the namespace still exists.
    fn del(request: &Request, target: &DelTarget) -> Result<(), Error> {
        let own_netns = OwnNetns::allowed(request.own_netns_allowed);
        let Some(netns) = namespace::open_existing(target.netns.as_deref(), own_netns)? else {
            return Ok(());
        };
        let pod = namespace::netlink(&netns)?;
        let link = loopback_link(&pod)?;
        log::timed_span("link", || pod.set_down(link.index))
            .map_err(|cause| failed("take down", cause))
    }

    fn check(&self, target: &Target) -> Result<(), Error> {
        let link = loopback_link(&open(&target.netns, self.own_netns)?)?;
        match link.is_up {
            true => Ok(()),
            false => Err(Error::failed(format!(
                "check: lo in {} is down",
                target.netns
            ))),
        }
    }
}

fn open(path: &str, own_netns: OwnNetns) -> Result<Netlink, Error> {
    namespace::netlink(&namespace::open(path, own_netns)?)
}

fn loopback_link(pod: &Netlink) -> Result<Link, Error> {
    let name: IfName = "lo".parse().expect("it is a name");
    let link = pod.link(&name).map_err(|cause| failed("look up", cause))?;
    link.ok_or_else(|| Error::failed("there is no lo in the container"))
}

fn failed(operation: &str, cause: NetlinkError) -> Error {
    Error::failed(format!("cannot {operation} lo in the container: {cause}"))
}
