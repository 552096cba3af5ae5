//! The repairs that are safe: each is what a verb of the plugin or `reconcile` does too.

use std::path::PathBuf;

use crate::cli::doctor::finding::Fix;
use crate::cli::node::Node;
use crate::cli::reconcile;
use crate::cni::names::Attachment;
use crate::error::Error;
use crate::kernel::sysctl::Parameter;
use crate::netfilter::masquerade;
use crate::plugins::bridge;

/// Repairs one thing. `cni_path` is where plugins are, for an IPAM plugin that has to release.
///
/// # Errors
/// When it could not be repaired.
pub fn apply(fix: &Fix, node: &Node, cni_path: &str) -> Result<(), Error> {
    match fix {
        Fix::Detach(at, attachment) => detach(node, *at, attachment, cni_path),
        Fix::ClearGarbled(at) => match &node.networks[*at].configured.host_local {
            Some(host_local) => host_local.store().clear_garbled().map(drop),
            None => Ok(()),
        },
        Fix::Unmasquerade(network, left) => masquerade::remove_left_over(network, left),
        Fix::Restore(at, repair) => reconcile::repair_one(node, &node.networks[*at], repair),
        Fix::Forward(family) => bridge::forward(*family),
        Fix::AcceptAdvertisements(interface) => {
            // A network manager may have taken them over meanwhile.
            if !Parameter::AcceptRa
                .read(interface)
                .is_ok_and(|it| it == "1")
            {
                return Ok(());
            }
            Parameter::AcceptRa.set(interface, 2).map_err(|cause| {
                Error::failed(format!("cannot set accept_ra of {interface}: {cause}"))
            })
        }
    }
}

fn detach(node: &Node, at: usize, attachment: &Attachment, cni_path: &str) -> Result<(), Error> {
    let cni_path: Vec<PathBuf> = std::env::split_paths(cni_path).collect();
    let conf = &node.networks[at].configured.conf;
    bridge::detach(conf, &cni_path, attachment, Ok(None))
}
