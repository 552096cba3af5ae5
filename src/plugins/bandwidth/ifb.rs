//! The ifb of an attachment, to which the packets from the container are redirected because only sent packets can be
//! queued.
//!
//! Its name is that of the Go plugin, which derives from network and container, so that either plugin finds the other's.
//! If another interface has it, the name derives from the interface as well. Its alias names the attachment.

use sha2::{Digest, Sha512};

use crate::cni::ValidAttachments;
use crate::cni::names::{Attachment, NetworkName};
use crate::error::{Error, Failures};
use crate::kernel::netlink::{
    Handle, IngressFilter, Kind, Link, Netlink, NetlinkError, NewIfb, NewQdisc, TcChange,
    not_found_as_none,
};
use crate::link::{Context, created_link, look_up};
use crate::net::IfName;
use crate::plugins::bandwidth::shaper::change;

/// The priority of the redirection in a `clsact` of another program: the last, so that the other's filters see all
/// packets.
const LAST: u16 = 0xffff;

/// The first word of the alias.
const ALIAS: &str = "bandwidth";

/// The names of the ifb of an attachment, the Go plugin's first, and its alias.
pub struct Identity {
    names: [IfName; 2],
    alias: String,
}

impl Identity {
    pub fn of(network: &NetworkName, attachment: &Attachment) -> Identity {
        let Attachment {
            container,
            interface,
        } = attachment;
        let of_go = Sha512::digest(format!("{network}{container}"));
        let names = [
            IfName::derived("bwp", of_go),
            IfName::derived("bwp", attachment.digest(network)),
        ];
        let mut alias = format!("{ALIAS} {network} {container} {interface}");
        // IFALIASZ, linux/if.h. GC does not recognize a shortened one.
        alias.truncate(255);
        Identity { names, alias }
    }

    /// The existing ifbs of the attachment. Those of the Go plugin have no alias; they belong to this attachment unless
    /// packets of another interface than `veth` are redirected to them.
    ///
    /// # Errors
    /// If the kernel refuses a request.
    pub fn existing(&self, host: &Netlink, veth: Option<&Link>) -> Result<Vec<Link>, Error> {
        let mut found = Vec::new();
        for name in &self.names {
            let Some(ifb) = look_up(host, name)?.filter(is_ifb) else {
                continue;
            };
            let is_own = match ifb.alias.as_str() {
                "" => redirecting(host, &ifb)?
                    .iter()
                    .all(|it| Some(it.index) == veth.map(|it| it.index)),
                alias => alias == self.alias,
            };
            if is_own {
                found.push(ifb);
            }
        }
        Ok(found)
    }

    /// Creates the ifb for the packets of a veth.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub fn create(&self, host: &Netlink, veth: &Link) -> Result<Link, Error> {
        let create = |name| {
            host.create_ifb(&NewIfb {
                name,
                mtu: veth.mtu,
                alias: &self.alias,
            })
        };
        let [name, other] = &self.names;
        let (name, created) = match create(name) {
            Err(NetlinkError::Exists) => (other, create(other)),
            created => (name, created),
        };
        created.context("create the ifb", name).map_err(|error| {
            error.details("the limit of packets from the container needs the kernel module ifb")
        })?;
        created_link(host, name)
    }
}

/// Whether the packets that a veth receives are redirected to an ifb.
///
/// # Errors
/// If the kernel refuses a request.
pub fn is_redirected(host: &Netlink, veth: &Link, ifb: &Link) -> Result<bool, Error> {
    let (_, filters) = Ingress::read(host, veth)?;
    Ok(filters.iter().any(|it| it.redirects_to == Some(ifb.index)))
}

/// The qdisc of a veth for received packets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ingress {
    Absent,
    Plain,
    /// Of another program.
    Clsact,
}

impl Ingress {
    fn read(host: &Netlink, veth: &Link) -> Result<(Ingress, Vec<IngressFilter>), Error> {
        let qdisc = host.ingress_qdisc(veth.index);
        let ingress = match qdisc.context("look up the ingress qdisc of", &veth.name)? {
            Some(qdisc) if qdisc.kind == "clsact" => Ingress::Clsact,
            Some(_) => Ingress::Plain,
            None => return Ok((Ingress::Absent, Vec::new())),
        };
        let filters = host.ingress_filters(veth.index, ingress.parent());
        Ok((ingress, filters.context("list the filters of", &veth.name)?))
    }

    /// The parent of filters.
    fn parent(self) -> Handle {
        match self {
            Ingress::Clsact => Handle::CLSACT_INGRESS,
            _ => Handle::INGRESS_QDISC,
        }
    }
}

/// Redirects the packets that a veth receives to an ifb.
///
/// # Errors
/// If the kernel refuses it.
pub fn redirect(host: &Netlink, veth: &Link, ifb: &Link) -> Result<(), Error> {
    let (ingress, filters) = Ingress::read(host, veth)?;
    let mut changes = Vec::new();
    if ingress == Ingress::Absent {
        let (parent, handle) = (Handle::INGRESS, Handle::INGRESS_QDISC);
        changes.push(TcChange::add_qdisc(
            veth.index,
            parent,
            handle,
            NewQdisc::Ingress,
        ));
    }
    let priority = if filters.is_empty() && ingress != Ingress::Clsact {
        1
    } else {
        LAST
    };
    let redirect = TcChange::redirect(veth.index, ingress.parent(), priority, ifb.index);
    changes.push(redirect);
    change(host, &changes).context("redirect received packets of", &veth.name)
}

/// Removes the redirection to one of these ifbs, or to a deleted link, and the qdisc if nothing else is in it.
///
/// # Errors
/// If the kernel refuses it.
pub fn remove_redirection(host: &Netlink, veth: &Link, ifbs: &[Link]) -> Result<(), Error> {
    let (ingress, filters) = Ingress::read(host, veth)?;
    let is_own = |filter: &&IngressFilter| {
        let to = filter.redirects_to;
        to == Some(0) || ifbs.iter().any(|ifb| to == Some(ifb.index))
    };
    let own: Vec<&IngressFilter> = filters.iter().filter(is_own).collect();
    let changes = match own.len() == filters.len() && ingress == Ingress::Plain {
        _ if own.is_empty() => return Ok(()),
        true => vec![TcChange::delete_qdisc(veth.index, Handle::INGRESS)],
        false => {
            let delete = |filter| TcChange::delete_filter(veth.index, filter);
            own.into_iter().map(delete).collect()
        }
    };
    change(host, &changes).context("remove the redirection of", &veth.name)
}

/// The veths whose received packets are redirected to an ifb.
///
/// # Errors
/// If the kernel refuses a request.
pub fn redirecting(host: &Netlink, ifb: &Link) -> Result<Vec<Link>, Error> {
    let mut links = host.links().context("list the links with", &ifb.name)?;
    links.retain(|link| link.kind == Kind::Veth);
    let mut found = Vec::new();
    for link in links {
        if is_redirected(host, &link, ifb)? {
            found.push(link);
        }
    }
    Ok(found)
}

/// Deletes an ifb, unless it is gone.
///
/// # Errors
/// If the kernel refuses it.
pub fn delete(host: &Netlink, ifb: &Link) -> Result<(), Error> {
    let Ok(name) = ifb.name.parse() else {
        return Ok(());
    };
    let deleted = not_found_as_none(host.delete_link(&name));
    deleted.map(drop).context("delete the ifb", &name)
}

/// All ifbs with a name of the plugin.
///
/// # Errors
/// If the kernel refuses the request.
pub fn all(host: &Netlink) -> Result<Vec<Link>, NetlinkError> {
    let mut links = host.links()?;
    links.retain(|link| is_ifb(link) && link.name.starts_with("bwp"));
    Ok(links)
}

/// Deletes the ifbs of attachments of a network that are not valid.
///
/// # Errors
/// If one could not be deleted, after all others were tried.
pub fn gc(host: &Netlink, network: &NetworkName, valid: &ValidAttachments) -> Result<(), Error> {
    let mut failures = Failures::default();
    for ifb in all(host).context("list", "ifbs")? {
        let words: Vec<&str> = ifb.alias.split(' ').collect();
        let [ALIAS, of_network, container, interface] = words[..] else {
            continue;
        };
        let is_valid = |container| valid.contains(&container, interface);
        if of_network != network.as_str() || container.parse().is_ok_and(is_valid) {
            continue;
        }
        for veth in failures.note(redirecting(host, &ifb)).unwrap_or_default() {
            failures.note(remove_redirection(host, &veth, std::slice::from_ref(&ifb)));
        }
        failures.note(delete(host, &ifb));
    }
    failures.into_result()
}

fn is_ifb(link: &Link) -> bool {
    link.kind == Kind::Other("ifb".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_is_that_of_the_go_plugin_and_the_second_depends_on_the_interface() {
        let names = |interface: &str| {
            let attachment = Attachment {
                container: "p1".parse().unwrap(),
                interface: interface.parse().unwrap(),
            };
            Identity::of(&"net1".parse().unwrap(), &attachment).names
        };
        let [go, own] = names("eth0");
        assert_eq!(go.as_str(), "bwpc37c1b09cd1a");
        assert_eq!(names("eth1")[0], go);
        assert_ne!(names("eth1")[1], own);
        assert_eq!(own.as_str().len(), 15);
    }
}
