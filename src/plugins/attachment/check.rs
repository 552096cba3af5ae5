//! CHECK of the container's side: compares prevResult with the kernel.

use crate::cni::environment::Target;
use crate::cni::names::NetworkName;
use crate::cni::result::{AddResult, Interface, IpConfig};
use crate::error::{Code, Error};
use crate::kernel::log::timed_span;
use crate::kernel::netlink::{Kind, Link, RouteEntry, RouteQuery};
use crate::link::namespace::AttachContext;
use crate::link::{Context, look_up, peer_on_host};
use crate::net::{Cidr, Family, IfName, Route, RouteAttributes};
use crate::netfilter::masquerade::{Masquerade, Policy};

/// The result of an attachment's ADD.
pub struct ExpectedContainer {
    pub interface: IfName,
    result: AddResult,
    container: Interface,
    masquerade: Masquerade,
}

impl ExpectedContainer {
    /// # Errors
    /// Code 7 if there is no prevResult, or it does not list the container's interface.
    pub fn new(
        previous: Option<AddResult>,
        network: &NetworkName,
        target: &Target,
    ) -> Result<ExpectedContainer, Error> {
        let Target { attachment, netns } = target;
        let result = previous.ok_or_else(|| {
            let msg = "configuration: prevResult is missing, but CHECK compares with it";
            Error::new(Code::INVALID_CONFIG, msg)
                .details("the runtime must pass the result of the ADD")
        })?;
        let is_container = |interface: &&Interface| {
            interface.name == attachment.interface.as_str() && interface.sandbox == *netns
        };
        let container = result
            .interfaces
            .iter()
            .find(is_container)
            .cloned()
            .ok_or_else(|| {
                let wanted = format!("none of them is {} in {netns}", attachment.interface);
                Error::config("prevResult.interfaces", "a list", wanted)
            })?;
        Ok(ExpectedContainer {
            interface: attachment.interface.clone(),
            result,
            container,
            masquerade: Masquerade::of(network, attachment),
        })
    }

    /// The addresses of the container's interface: those with its index, or if there are none, those without an index.
    pub fn addresses(&self) -> impl Iterator<Item = &IpConfig> {
        let index = self
            .result
            .interfaces
            .iter()
            .position(|interface| *interface == self.container);
        let ips = &self.result.ips;
        let wanted = index.filter(|_| ips.iter().any(|ip| ip.interface == index));
        ips.iter().filter(move |ip| ip.interface == wanted)
    }

    /// Whether prevResult lists no other interface in the container. Other plugins of a chain may add routes over their
    /// interfaces.
    fn is_alone(&self) -> bool {
        let sandbox = &self.container.sandbox;
        let interfaces = self.result.interfaces.iter();
        interfaces.filter(|other| other.sandbox == *sandbox).count() == 1
    }

    /// The container's interface: a veth with the MAC address of the ADD.
    ///
    /// # Errors
    /// The first difference.
    pub fn check_link(&self, context: &AttachContext) -> Result<Link, Error> {
        let name = &self.interface;
        let link = look_up(&context.pod, name)?
            .ok_or_else(|| differs(format!("interface {name} is missing in the container")))?;
        if link.kind != Kind::Veth {
            return Err(differs(format!(
                "interface {name} is not a veth but a {}",
                link.kind
            )));
        }
        let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
        let wanted = &self.container.mac;
        if !wanted.is_empty() && !mac.eq_ignore_ascii_case(wanted) {
            return Err(differs(format!(
                "interface {name} has the MAC address {mac}, expected {wanted}"
            )));
        }
        Ok(link)
    }

    /// # Errors
    /// If it is down.
    pub fn check_up(&self, link: &Link) -> Result<(), Error> {
        match link.is_up {
            true => Ok(()),
            false => Err(differs(format!("interface {} is down", self.interface))),
        }
    }

    /// The host end of the container's interface.
    ///
    /// # Errors
    /// If it is not on the host.
    pub fn host_end(&self, context: &AttachContext, container: &Link) -> Result<Link, Error> {
        let name = &self.interface;
        peer_on_host(&context.host, container)
            .context("look up the veth peer of", name)?
            .ok_or_else(|| differs(format!("the veth peer of {name} is not on the host")))
    }

    /// # Errors
    /// The first missing address, route or rule.
    pub fn check_rest(
        &self,
        context: &AttachContext,
        container: &Link,
        policy: Option<&Policy>,
    ) -> Result<(), Error> {
        check_addresses(self, context, container)?;
        check_routes(self, context, container)?;
        let Some(policy) = policy else { return Ok(()) };
        let addresses: Vec<Cidr> = self.addresses().map(|ip| ip.address).collect();
        timed_span("masquerade", || self.masquerade.check(&addresses, policy))
    }
}

pub fn differs(what: impl std::fmt::Display) -> Error {
    Error::failed(format!("check: {what}"))
        .details("the attachment is not as its ADD made it; run DEL, then ADD again")
}

fn check_addresses(
    expected: &ExpectedContainer,
    context: &AttachContext,
    container: &Link,
) -> Result<(), Error> {
    let name = &expected.interface;
    let observed = context
        .pod
        .addresses(container.index)
        .context("list addresses of", name)?;
    let missing = expected
        .addresses()
        .find(|ip| !observed.iter().any(|a| a.cidr == ip.address));
    missing.map_or(Ok(()), |ip| {
        Err(differs(format!(
            "interface {name} has lost the address {}",
            ip.address
        )))
    })
}

fn check_routes(
    expected: &ExpectedContainer,
    context: &AttachContext,
    container: &Link,
) -> Result<(), Error> {
    for family in Family::BOTH {
        let of_family = |route: &&Route| route.dst.family() == family;
        let wanted: Vec<&Route> = expected.result.routes.iter().filter(of_family).collect();
        if wanted.is_empty() {
            continue;
        }
        let query = RouteQuery {
            family,
            link: expected.is_alone().then_some(container.index),
        };
        let observed = context
            .pod
            .routes(query)
            .context("list routes of", &expected.interface)?;
        if let Some(missing) = wanted
            .iter()
            .find(|route| !observed.iter().any(|p| matches(p, route)))
        {
            let gw = missing
                .gw
                .map(|gw| format!(" via {gw}"))
                .unwrap_or_default();
            let table = missing
                .table
                .map(|table| format!(" in table {table}"))
                .unwrap_or_default();
            let name = &expected.interface;
            return Err(differs(format!(
                "route {}{gw}{table} over {name} is missing",
                missing.dst
            )));
        }
    }
    Ok(())
}

/// Whether a route matches a desired one, except for metrics, which the Go plugin does not set. The kernel merges equal
/// IPv6 routes over several links into one with several next hops.
fn matches(observed: &RouteEntry, wanted: &Route) -> bool {
    let RouteAttributes {
        priority, table, ..
    } = wanted.attributes();
    observed.dst == wanted.dst.network()
        && observed.table == table
        && wanted
            .gw
            .is_none_or(|gw| observed.gw == Some(gw) || observed.gateways.contains(&gw))
        && priority.is_none_or(|priority| observed.priority == priority)
}
