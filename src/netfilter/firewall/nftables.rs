//! Filter rules over netlink: those of the backend nftables, and the removal of all rules in nf_tables, including those of
//! iptables-nft.
//!
//! An accept in one table does not override a drop in another. Where FORWARD of iptables drops, the accept rules are
//! added to its table, in the form in which iptables lists them.

use std::net::IpAddr;

use crate::kernel::nftables::{
    Action, Batch, Match, Nftables, NftablesError, Rule, RuleEntry, XtState, is_final,
};
use crate::kernel::process;
use crate::net::{Cidr, Family, IfName};
use crate::netfilter::firewall::isolation::Isolation;
use crate::netfilter::firewall::records::Recorded;
use crate::netfilter::firewall::{ACCEPT, COMMENT, Ingress, LeadsTo, by_family};

/// Plans the rules for addresses, and the removal of those for `old` ones.
pub fn install(
    nftables: &Nftables,
    (addresses, old): (&[IpAddr], &[IpAddr]),
    ingress: &Ingress,
    batch: &mut Batch,
) -> Result<(), NftablesError> {
    for (family, own) in by_family(old) {
        for rule in accepting(nftables, family, &own)? {
            batch.delete_rule(Isolation::of_iptables(family).table, ACCEPT, rule.handle);
        }
    }
    for (family, own) in by_family(addresses) {
        accept(nftables, (family, &own), ingress, batch)?;
    }
    for isolation in isolations(nftables, addresses)? {
        isolation.install(nftables, ingress, batch)?;
    }
    Ok(())
}

/// The tables with isolation rules: those of iptables where it is installed, otherwise ours.
fn isolations(nftables: &Nftables, addresses: &[IpAddr]) -> Result<Vec<Isolation>, NftablesError> {
    let mut isolations = Vec::new();
    for (family, _) in by_family(addresses) {
        let isolation = Isolation::of_iptables(family);
        let is_used = process::find("iptables").is_some()
            || nftables.chain(isolation.table, "FORWARD")?.is_some();
        isolations.push(if is_used { isolation } else { Isolation::OWN });
    }
    isolations.dedup_by_key(|it| it.table);
    Ok(isolations)
}

/// Plans accept rules in the table of iptables, if its FORWARD drops packets.
fn accept(
    nftables: &Nftables,
    (family, addresses): (Family, &[IpAddr]),
    ingress: &Ingress,
    batch: &mut Batch,
) -> Result<(), NftablesError> {
    let table = Isolation::of_iptables(family).table;
    let Some(by_policy) = nftables.drops_by_policy(table, "FORWARD")? else {
        return Ok(());
    };
    let forward = nftables.rules(table, Some("FORWARD"))?;
    let is_drop = |rule: &&RuleEntry| is_final(rule) && !rule.accepts();
    if !by_policy && !forward.iter().any(|rule| is_drop(&rule)) {
        return Ok(());
    }
    let present = accepting(nftables, family, addresses)?;
    let wanted: Vec<Rule> = addresses
        .iter()
        .flat_map(|address| accept_rules(*address, ingress))
        .collect();
    let mut before = forward.iter().take_while(|rule| !is_final(rule));
    let is_reached = before.any(|rule| rule.target() == Some(ACCEPT));
    if is_reached && present.len() == wanted.len() {
        return Ok(());
    }
    batch.create_chain(table, ACCEPT);
    for rule in &present {
        batch.delete_rule(table, ACCEPT, rule.handle);
    }
    for rule in &wanted {
        batch.append(table, ACCEPT, rule);
    }
    if !is_reached {
        for jump in forward.iter().filter(|rule| rule.target() == Some(ACCEPT)) {
            batch.delete_rule(table, &jump.chain, jump.handle);
        }
        let comment = vec![Match::XtComment(COMMENT.to_owned())];
        let jump = Rule::new(comment, Action::Jump(ACCEPT.to_owned()));
        batch.prepend(table, "FORWARD", &jump);
    }
    Ok(())
}

/// The rules that the backend iptables adds for an address where FORWARD drops.
fn accept_rules(address: IpAddr, ingress: &Ingress) -> [Rule; 3] {
    let address = Cidr::host(address);
    let to = |states| {
        let matches = vec![Match::Destination(address), Match::XtConntrack(states)];
        Rule::new(matches, Action::Accept)
    };
    let inbound = match ingress {
        Ingress::Open => Rule::new(vec![Match::Destination(address)], Action::Accept),
        _ => to(&[XtState::Dnat]),
    };
    [
        to(&[XtState::Related, XtState::Established]),
        Rule::new(vec![Match::Source(address)], Action::Accept),
        inbound,
    ]
}

/// The rules that accept packets of addresses.
pub fn accepting(
    nftables: &Nftables,
    family: Family,
    addresses: &[IpAddr],
) -> Result<Vec<RuleEntry>, NftablesError> {
    let mut rules = nftables.rules(Isolation::of_iptables(family).table, Some(ACCEPT))?;
    rules.retain(|rule| accepted_by(rule, family).is_some_and(|it| addresses.contains(&it)));
    Ok(rules)
}

/// The address whose packets a rule accepts.
fn accepted_by(rule: &RuleEntry, family: Family) -> Option<IpAddr> {
    let network = rule.source(family).or_else(|| rule.destination(family))?;
    let address = network.address();
    (rule.accepts() && network == Cidr::host(address)).then_some(address)
}

/// Plans the removal of the rules of addresses, and with the last ones that of the shared chains. A bridge is isolated as
/// long as it has another attachment, recorded or accepted.
pub fn remove(
    nftables: &Nftables,
    (addresses, others): (&[IpAddr], &[Recorded]),
    leads_to: LeadsTo,
    batch: &mut Batch,
) -> Result<(), NftablesError> {
    let mut accepted = Vec::new();
    for family in Family::BOTH {
        let table = Isolation::of_iptables(family).table;
        if nftables.chain(table, ACCEPT)?.is_none() {
            continue;
        }
        let rules = nftables.rules(table, Some(ACCEPT))?;
        let (own, rest): (Vec<_>, Vec<_>) = rules
            .iter()
            .partition(|rule| accepted_by(rule, family).is_some_and(|it| addresses.contains(&it)));
        for rule in own {
            batch.delete_rule(table, ACCEPT, rule.handle);
        }
        let rest = rest.iter().filter_map(|rule| accepted_by(rule, family));
        let rest: Vec<IpAddr> = rest.collect();
        // The Go plugin leaves its chain.
        if rest.is_empty() {
            let forward = nftables.rules(table, Some("FORWARD"))?;
            for jump in forward.iter().filter(|rule| rule.target() == Some(ACCEPT)) {
                batch.delete_rule(table, &jump.chain, jump.handle);
            }
            batch.delete_chain(table, ACCEPT);
        }
        accepted.extend(rest);
    }
    let is_used = |bridge: &IfName| {
        others.iter().any(|it| it.bridge.as_ref() == Some(bridge))
            || accepted
                .iter()
                .any(|it| leads_to(*it).as_deref() == Some(bridge.as_str()))
    };
    for isolation in all_isolations() {
        let mut bridges = isolation.bridges(nftables)?;
        bridges.retain(|bridge| !is_used(bridge));
        isolation.remove(nftables, &bridges, batch)?;
    }
    Ok(())
}

fn all_isolations() -> [Isolation; 3] {
    let [v4, v6] = Family::BOTH.map(Isolation::of_iptables);
    [v4, v6, Isolation::OWN]
}

/// The first table that lacks rules which [`install`] adds.
pub fn difference(
    nftables: &Nftables,
    addresses: &[IpAddr],
    ingress: &Ingress,
) -> Result<Option<String>, NftablesError> {
    for isolation in isolations(nftables, addresses)? {
        let mut missing = Batch::default();
        isolation.install(nftables, ingress, &mut missing)?;
        if !missing.is_empty() {
            let table = isolation.table.name;
            return Ok(Some(format!("the isolation of a bridge in table {table}")));
        }
    }
    for (family, own) in by_family(addresses) {
        let mut missing = Batch::default();
        accept(nftables, (family, &own), ingress, &mut missing)?;
        if !missing.is_empty() {
            return Ok(Some(format!("{ACCEPT} of {family} for {own:?}")));
        }
    }
    Ok(None)
}
