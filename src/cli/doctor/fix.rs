//! The repairs of `doctor --fix`. Each of them is also done by an operation of a plugin or by `gangplank reconcile`.

use std::path::PathBuf;

use crate::cli::doctor::chained;
use crate::cli::doctor::finding::Fix;
use crate::cli::node::{ChainedPlugin, Node};
use crate::cli::reconcile;
use crate::error::{Error, Failures};
use crate::kernel::sysctl::Parameter;
use crate::netfilter::{firewall, masquerade};
use crate::plugins::bandwidth::ifb;
use crate::plugins::{attachment, bridge};

/// `cni_path` is searched for IPAM plugins that release addresses.
pub fn apply(fix: &Fix, node: &Node, cni_path: &str) -> Result<(), Error> {
    match fix {
        Fix::Detach(at, attachment) => {
            let cni_path: Vec<PathBuf> = std::env::split_paths(cni_path).collect();
            let conf = &node.networks[*at].configured.conf;
            let mut failures = Failures::default();
            for plugin in ChainedPlugin::ALL {
                failures.note(plugin.del(&conf.name, attachment));
            }
            failures.note(bridge::detach(conf, &cni_path, attachment, Ok(None)));
            failures.into_result()
        }
        Fix::RemoveInvalidLeases(at) => match &node.networks[*at].configured.host_local {
            Some(host_local) => host_local.store().remove_invalid().map(drop),
            None => Ok(()),
        },
        Fix::RemoveMasquerade(network, entries) => masquerade::remove_left_over(network, entries),
        Fix::Reconcile(at, repair) => reconcile::apply(repair, node, &node.networks[*at]),
        Fix::RestoreCall(at) => node.differing_calls()[*at].0.restore(),
        Fix::RestoreShared(repair) => repair.apply(),
        Fix::RemovePortMappings(ports) => chained::remove_port_mappings(ports),
        Fix::RemoveFirewall(network, attachment) => {
            ChainedPlugin::Firewall.del(network, attachment)
        }
        Fix::RemoveIfb(ifb) => match ifb::redirecting(&node.host, ifb)?.is_empty() {
            true => ifb::delete(&node.host, ifb),
            // An ADD was in progress.
            false => Ok(()),
        },
        Fix::RemoveIsolation(bridges) => firewall::inventory::remove_isolation(bridges),
        Fix::EnableForwarding(family) => attachment::forward(*family),
        Fix::AcceptRouterAdvertisements(interface) => {
            // A network manager may have set it to 0 in the meantime, and handle router advertisements itself.
            if Parameter::AcceptRa.read(interface).ok().as_deref() != Some("1") {
                return Ok(());
            }
            Parameter::AcceptRa.set(interface, 2).map_err(|cause| {
                Error::failed(format!("cannot set accept_ra of {interface}: {cause}"))
            })
        }
    }
}
