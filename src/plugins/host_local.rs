//! The `host-local` plugin, as `ptp`, `macvlan` and `ipvlan` execute it.

use crate::cni::args::Args;
use crate::cni::environment::{DelTarget, Target};
use crate::cni::json::{KeyPaths, key_paths};
use crate::cni::request::Request;
use crate::cni::result::AddResult;
use crate::error::Error;
use crate::ipam::config::HostLocalKeys;
use crate::ipam::{HostLocal, Store};
use crate::kernel::log;
use crate::kernel::netns::OwnNetns;
use crate::link::namespace;
use crate::plugins::plugin::Plugin;
use crate::undo::Undo;

/// A valid request for ADD, CHECK or STATUS.
pub struct HostLocalPlugin {
    host_local: HostLocal,
    own_netns: OwnNetns,
}

impl Plugin for HostLocalPlugin {
    const KEYS: &'static [fn() -> KeyPaths] = &[key_paths::<HostLocalKeys>];

    fn parse(request: &Request) -> Result<HostLocalPlugin, Error> {
        Ok(HostLocalPlugin {
            host_local: HostLocal::parse(&request.conf, &Args::parse(&request.args)?)?,
            own_netns: OwnNetns::allowed(request.own_netns_allowed),
        })
    }

    fn add<'a>(&'a self, target: &'a Target, undo: &mut Undo<'a>) -> Result<AddResult, Error> {
        namespace::reject_own(&target.netns, self.own_netns)?;
        let lease = log::timed_span("ipam", || self.host_local.reserve(&target.attachment))?;
        let held = lease.held();
        undo.push(move || self.host_local.store().release(&target.attachment, &held));
        Ok(lease.into())
    }

    fn del(request: &Request, target: &DelTarget) -> Result<(), Error> {
        if let Some(netns) = &target.netns {
            namespace::reject_own(netns, OwnNetns::allowed(request.own_netns_allowed))?;
        }
        let store = Store::of(&request.conf)?;
        log::timed_span("ipam", || {
            store.release(&target.attachment, &store.held(&target.attachment)?)
        })
    }

    fn check(&self, target: &Target) -> Result<(), Error> {
        namespace::reject_own(&target.netns, self.own_netns)?;
        log::timed_span("ipam", || self.host_local.check(&target.attachment))
    }

    fn gc(request: &Request) -> Result<(), Error> {
        let store = Store::of(&request.conf)?;
        match request.conf.valid_attachments()? {
            Some(valid) => log::timed_span("ipam", || store.gc_without_links(&valid)),
            None => Ok(()),
        }
    }

    fn status(&self) -> Result<(), Error> {
        log::timed_span("ipam", || self.host_local.status())
    }
}
