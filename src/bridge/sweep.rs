//! GC: giving back what no valid attachment holds.

use crate::bridge::attach::failed;
use crate::bridge::open_host;
use crate::bridge::plan::host_interface;
use crate::bridge::{passage, spoof};
use crate::cni::conf::NetConf;
use crate::cni::request::{Attachment, Request};
use crate::error::{Error, Failures};
use crate::host::journal;
use crate::host::netlink::present;
use crate::ipam::Ipam;
use crate::masquerade;

/// Removes masquerading, guards, links and leases of this network, and what lets its bridge's packets pass when that has no
/// containers left, that belong to no valid attachment, whichever plugin made
/// them. A link is removed when its lease says whose it is; one without a lease cannot be told from another network's.
/// Where the valid attachments are not listed, nothing is removed.
///
/// # Errors
/// When something could not be removed, after all else was tried.
pub fn gc(conf: &NetConf, request: &Request) -> Result<(), Error> {
    let valid = conf.valid_attachments()?;
    let ipam = Ipam::parse_for_release(conf, request)?;
    let Some(valid) = valid else {
        return ipam.map_or(Ok(()), |ipam| ipam.sweep(None));
    };
    let mut failures = Failures::default();
    let sweep = || masquerade::sweep(&conf.name, &valid);
    failures.note(journal::phase("masquerade", sweep));
    if let Some(ipam) = &ipam {
        let strays = failures.note(ipam.strays(&valid)).unwrap_or_default();
        failures.note(remove_links(conf, &strays));
        failures.note(journal::phase("ipam", || ipam.sweep(Some(&valid))));
    }
    if let Some(host) = failures.note(open_host()) {
        failures.note(spoof::sweep(&conf.name, &valid, &host));
        failures.note(passage::close(&host, conf));
    }
    failures.into_result()
}

fn remove_links(conf: &NetConf, strays: &[Attachment]) -> Result<(), Error> {
    if strays.is_empty() {
        return Ok(());
    }
    let host = open_host()?;
    let mut failures = Failures::default();
    for stray in strays {
        let name = host_interface(&conf.name, stray);
        let deleted = present(host.delete_link(&name));
        failures.note(deleted.map_err(|cause| failed("delete", &name, cause)));
    }
    failures.into_result()
}
