//! The `static` plugin, as other plugins execute it.

use crate::cni::args::Args;
use crate::cni::environment::{DelTarget, Target};
use crate::cni::json::{KeyPaths, key_paths};
use crate::cni::request::Request;
use crate::cni::result::AddResult;
use crate::error::Error;
use crate::ipam::StaticAddresses;
use crate::ipam::static_addresses::StaticKeys;
use crate::kernel::netns::OwnNetns;
use crate::link::namespace;
use crate::plugins::plugin::Plugin;
use crate::undo::Undo;

/// A valid request for ADD, CHECK or STATUS.
pub struct StaticPlugin {
    addresses: StaticAddresses,
    own_netns: OwnNetns,
}

impl Plugin for StaticPlugin {
    const KEYS: &'static [fn() -> KeyPaths] = &[key_paths::<StaticKeys>];

    fn parse(request: &Request) -> Result<StaticPlugin, Error> {
        Ok(StaticPlugin {
            addresses: StaticAddresses::parse(&request.conf, &Args::parse(&request.args)?)?,
            own_netns: OwnNetns::allowed(request.own_netns_allowed),
        })
    }

    fn add<'a>(&'a self, target: &'a Target, _undo: &mut Undo<'a>) -> Result<AddResult, Error> {
        namespace::reject_own(&target.netns, self.own_netns)?;
        Ok(self.addresses.lease().clone().into())
    }

    fn del(request: &Request, target: &DelTarget) -> Result<(), Error> {
        let own_netns = OwnNetns::allowed(request.own_netns_allowed);
        let netns = target.netns.as_deref();
        netns.map_or(Ok(()), |path| namespace::reject_own(path, own_netns))
    }

    fn check(&self, target: &Target) -> Result<(), Error> {
        namespace::reject_own(&target.netns, self.own_netns)?;
        self.addresses.check()
    }
}
