//! Creates the veth pair of a plan.

use crate::error::Error;
use crate::kernel::netlink::{Link, Netlink, NetlinkError, NewVeth, not_found_as_none};
use crate::link::namespace::AttachContext;
use crate::link::plan::VethPlan;
use crate::link::{failed, peer_on_host};
use crate::net::IfName;
use crate::undo::Undo;

impl VethPlan {
    /// Creates the pair, with the host end as a port of `bridge`. Both ends are down. Pushes the inverse.
    ///
    /// # Errors
    /// When the kernel refuses; if one of the names exists, the message names its owner.
    pub fn create(
        &self,
        context: &AttachContext,
        bridge: Option<u32>,
        undo: &mut Undo,
    ) -> Result<(), Error> {
        let host = &context.host;
        let veth = NewVeth {
            port: &self.host,
            bridge,
            end: &self.container,
            mac: self.mac,
            mtu: self.mtu,
        };
        let created = host.create_veth(&veth, Some(&context.netns));
        // Undo deletes a pair that was or may have been created here, and none that existed before.
        if matches!(
            created,
            Ok(()) | Err(NetlinkError::Lost | NetlinkError::NoAnswer)
        ) {
            let name = self.host.clone();
            let host = host.clone();
            undo.push(move || delete(&host, &name));
        }
        created.map_err(|cause| {
            let operation = format!("create {} in the container and", self.container);
            let error = failed(&operation, &self.host, cause);
            match cause {
                NetlinkError::Exists => {
                    name_conflict(&self.host, &self.container, context).unwrap_or(error)
                }
                _ => error,
            }
        })
    }
}

/// Deletes a link, if possible through a new socket: the current one may be broken.
fn delete(host: &Netlink, name: &IfName) -> Result<(), Error> {
    let fresh = Netlink::open();
    let deleted = fresh.as_ref().unwrap_or(host).delete_link(name);
    match not_found_as_none(deleted) {
        Ok(_) => Ok(()),
        Err(cause) => Err(failed("delete", name, cause)),
    }
}

/// Rejects an attachment whose interface names already exist, before anything is changed. Other IPAM plugins do not
/// distinguish two ADDs of one attachment, so that the undo of the second would release the addresses of the first.
///
/// # Errors
/// When one of the names exists; the message names its owner.
pub fn require_unused_names(
    host: &IfName,
    container: &IfName,
    context: &AttachContext,
) -> Result<(), Error> {
    name_conflict(host, container, context).map_or(Ok(()), Err)
}

fn name_conflict(host: &IfName, container: &IfName, context: &AttachContext) -> Option<Error> {
    let remedy = "an attachment is added once; run DEL before another ADD";
    if let Ok(Some(link)) = context.pod.link(container) {
        let path = context.netns.path().display();
        let kind = &link.kind;
        let msg = format!("interface {container} already exists in {path}: it is a {kind}");
        return Some(
            Error::failed(msg)
                .details(owner_of(&link, context))
                .details(remedy),
        );
    }
    let link = context.host.link(host).ok().flatten()?;
    let msg = format!(
        "interface {} already exists on the host",
        link.display_name()
    );
    Some(Error::failed(msg).details(format!("it belongs to this attachment; {remedy}")))
}

/// Describes the owner of a container's interface by the alias of its peer.
fn owner_of(link: &Link, context: &AttachContext) -> String {
    match peer_on_host(&context.host, link).ok().flatten() {
        Some(peer) => format!("its veth peer on the host is {}", peer.display_name()),
        None => "its veth peer is not on the host: something else made it".to_owned(),
    }
}
