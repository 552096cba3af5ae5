//! Host ports on 127.0.0.1: packets from 127.0.0.0/8 leave the host only by interfaces with the sysctl route_localnet,
//! which also accepts packets to 127.0.0.0/8 that arrive there. These are dropped:
//!
//! ```text
//! table inet gangplank_portmap {
//!     chain localnet {
//!         type filter hook prerouting priority raw; policy accept;
//!         iifname "cni0" ip daddr 127.0.0.0/8 drop
//!     }
//! }
//! ```
//! The rules record the interfaces whose sysctl is reset with the last mapped port. An interface whose sysctl was set
//! before has no rule.

use crate::error::{Error, Failures};
use crate::kernel::nftables::{
    Action, BaseChain, Batch, Hook, Match, Nftables, NftablesError, Rule, RuleEntry,
};
use crate::kernel::sysctl::Parameter;
use crate::net::{Cidr, Family, IfName};
use crate::netfilter::Feature;
use crate::netfilter::portmap::TABLE;

/// The priority is NF_IP_PRI_RAW (linux/netfilter_ipv4.h): before connection tracking translates addresses of replies.
pub const CHAIN: BaseChain = BaseChain {
    name: "localnet",
    kind: "filter",
    hook: Hook::Prerouting,
    priority: -300,
};

const FEATURE: Feature = Feature {
    name: "portmap",
    remedy: "host ports on 127.0.0.1 need nf_tables; set snat to false",
};

/// Enables route_localnet for an interface.
///
/// # Errors
/// When the kernel refuses.
pub fn enable(interface: &IfName) -> Result<(), Error> {
    let failed = |cause| {
        let what = format!("portmap: cannot set net.ipv4.conf.{interface}.route_localnet: {cause}");
        Error::failed(what)
    };
    if Parameter::RouteLocalnet.read(interface).map_err(failed)? == "1" {
        return Ok(());
    }
    let rule = rule_of(interface);
    FEATURE.with_nftables("drop packets to 127.0.0.0/8", |nftables| {
        nftables.change(&|| {
            let mut batch = Batch::default();
            let present = nftables.rules(TABLE, Some(CHAIN.name))?;
            if !present.iter().any(|it| it.is(&rule)) {
                batch.create_table(TABLE);
                batch.create_base_chain(TABLE, CHAIN);
                batch.append(TABLE, CHAIN.name, &rule);
            }
            Ok(batch)
        })
    })?;
    Parameter::RouteLocalnet.set(interface, 1).map_err(failed)
}

/// Sets route_localnet of these interfaces.
///
/// # Errors
/// When the kernel refuses, after all were tried.
pub fn set(interfaces: &[IfName], enabled: bool) -> Result<(), Error> {
    let mut failures = Failures::default();
    for interface in interfaces {
        match Parameter::RouteLocalnet.set(interface, enabled.into()) {
            Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
                let what = "cannot set net.ipv4.conf";
                let what = format!("portmap: {what}.{interface}.route_localnet: {cause}");
                failures.note::<()>(Err(Error::failed(what)));
            }
            _ => {}
        }
    }
    failures.into_result()
}

/// The interfaces for which route_localnet was enabled.
pub fn enabled(nftables: &Nftables) -> Result<Vec<IfName>, NftablesError> {
    let rules = nftables.rules(TABLE, Some(CHAIN.name))?;
    Ok(rules.iter().filter_map(RuleEntry::input).collect())
}

fn rule_of(interface: &IfName) -> Rule {
    let loopback: Cidr = "127.0.0.0/8".parse().expect("it is a network");
    let matches = vec![
        Match::Input(interface.clone()),
        Match::Family(Family::V4),
        Match::Destination(loopback),
    ];
    Rule::new(matches, Action::Drop)
}
