//! The `loopback` plugin: brings up `lo` in a container.

use crate::cni::conf::NetConf;
use crate::cni::request::Request;
use crate::cni::result::{AddResult, Interface, IpConfig};
use crate::error::Error;
use crate::kernel::netlink::{Link, Netlink, NetlinkError};
use crate::kernel::netns::{Netns, NetnsError, OwnNetns};
use crate::net::IfName;

/// ADD: `lo` is up, with the addresses that the kernel gives it. A prevResult is passed through.
///
/// # Errors
/// When the namespace cannot be used or `lo` has addresses that are not loopback ones.
pub fn add(conf: &NetConf, request: &Request, netns: &str) -> Result<AddResult, Error> {
    let prev = conf.prev_result()?;
    let namespace = open(request, netns).map_err(|cause| cause.report(netns))?;
    let pod = netlink_in(&namespace, netns)?;
    let link = loopback_link(&pod)?;
    pod.set_up(link.index)
        .map_err(|cause| failed("bring up", cause))?;
    let addresses = pod
        .addresses(link.index)
        .map_err(|cause| failed("list addresses of", cause))?;
    if let Some(foreign) = addresses.iter().find(|a| !a.cidr.address().is_loopback()) {
        let msg = format!(
            "lo in {netns} has the address {}, which is not a loopback one",
            foreign.cidr
        );
        return Err(Error::failed(msg).details("remove it from the container's namespace"));
    }
    Ok(prev.unwrap_or_else(|| AddResult {
        interfaces: vec![Interface {
            name: "lo".to_owned(),
            mac: "00:00:00:00:00:00".to_owned(),
            sandbox: netns.to_owned(),
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

/// DEL: `lo` is down, if there is still a container to have one.
///
/// # Errors
/// When the kernel refuses.
pub fn del(request: &Request, netns: Option<&str>) -> Result<(), Error> {
    let Some(path) = netns else { return Ok(()) };
    let namespace = match open(request, path) {
        Err(cause) if cause.is_gone() => return Ok(()),
        opened => opened.map_err(|cause| cause.report(path))?,
    };
    let pod = netlink_in(&namespace, path)?;
    pod.set_down(loopback_link(&pod)?.index)
        .map_err(|cause| failed("take down", cause))
}

/// CHECK: `lo` is up.
///
/// # Errors
/// When it is not, or the namespace cannot be used.
pub fn check(request: &Request, netns: &str) -> Result<(), Error> {
    let namespace = open(request, netns).map_err(|cause| cause.report(netns))?;
    let link = loopback_link(&netlink_in(&namespace, netns)?)?;
    if link.is_up {
        Ok(())
    } else {
        Err(Error::failed(format!("check: lo in {netns} is down")))
    }
}

fn open(request: &Request, path: &str) -> Result<Netns, NetnsError> {
    Netns::open(path, OwnNetns::allowed(request.own_netns_allowed))
}

fn netlink_in(namespace: &Netns, path: &str) -> Result<Netlink, Error> {
    Netlink::open_in(namespace).map_err(|cause| cause.report(path))
}

fn loopback_link(pod: &Netlink) -> Result<Link, Error> {
    let name: IfName = "lo".parse().expect("it is a name");
    let link = pod.link(&name).map_err(|cause| failed("look up", cause))?;
    link.ok_or_else(|| Error::failed("there is no lo in the container"))
}

fn failed(operation: &str, cause: NetlinkError) -> Error {
    Error::failed(format!("cannot {operation} lo in the container: {cause}"))
}
