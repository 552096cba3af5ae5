//! The objects of the table that containers share: maps, base chains and their rules.

use crate::kernel::nftables::{
    Action, BaseChain, Batch, Hook, Load, MapField, MapType, Match, Nftables, NftablesError, Rule,
    RuleEntry,
};
use crate::net::Family;
use crate::netfilter::portmap::{TABLE, localnet};

/// NF_IP_PRI_NAT_DST + 1 and NF_IP_PRI_NAT_SRC - 1 (linux/netfilter_ipv4.h).
const BASE_CHAINS: [BaseChain; 3] = [
    base_chain("prerouting", Hook::Prerouting, -99),
    base_chain("output", Hook::Output, -99),
    base_chain("postrouting", Hook::Postrouting, 99),
];

/// The chain for packets to an address of the host.
pub const HOST_PORTS: &str = "hostports";

/// The chain that translates the destination.
pub const TRANSLATE: &str = "translate";

const fn base_chain(name: &'static str, hook: Hook, priority: i32) -> BaseChain {
    BaseChain {
        name,
        kind: "nat",
        hook,
        priority,
    }
}

/// The maps of a family.
#[derive(Clone, Copy, Debug)]
pub struct Maps {
    pub family: Family,
    /// Ports of all host addresses.
    pub ports: &'static str,
    /// Ports of one host address.
    pub addresses: &'static str,
    /// The chains of networks with conditions, for ports of all host addresses and of one.
    pub conditions: [&'static str; 2],
    pub snat: &'static str,
}

impl Maps {
    pub const BOTH: [Maps; 2] = [
        Maps {
            family: Family::V4,
            ports: "ports4",
            addresses: "addresses4",
            conditions: ["conditional_ports4", "conditional_addresses4"],
            snat: "snat4",
        },
        Maps {
            family: Family::V6,
            ports: "ports6",
            addresses: "addresses6",
            conditions: ["conditional_ports6", "conditional_addresses6"],
            snat: "snat6",
        },
    ];

    pub fn of(family: Family) -> Maps {
        match family {
            Family::V4 => Maps::BOTH[0],
            Family::V6 => Maps::BOTH[1],
        }
    }

    pub fn names(self) -> [&'static str; 5] {
        self.types().map(|(name, _)| name)
    }

    fn types(self) -> [(&'static str, MapType); 5] {
        use MapField::{Ipv4, Ipv6, Port, Protocol};
        let (with_address, value): (&[MapField], &[MapField]) = match self.family {
            Family::V4 => (&[Ipv4, Protocol, Port], &[Ipv4, Port]),
            Family::V6 => (&[Ipv6, Protocol, Port], &[Ipv6, Port]),
        };
        let port: &[MapField] = &[Protocol, Port];
        let map = |key, value| MapType { key, value };
        [
            (self.ports, map(port, value)),
            (self.addresses, map(with_address, value)),
            (self.conditions[0], map(port, &[])),
            (self.conditions[1], map(with_address, &[])),
            (self.snat, map(with_address, &[])),
        ]
    }

    /// The rules of the shared chains about this family, in order.
    fn rules(self) -> [(&'static str, Rule); 5] {
        let family = self.family;
        let rule = |action| Rule::new(vec![Match::Family(family)], action);
        let (protocol, port) = (Load::Protocol, Load::DestinationPort);
        let with_address = || vec![Load::Destination(family), protocol, port];
        let without_address = || vec![protocol, port];
        let snat = vec![
            Load::Destination(family),
            protocol,
            Load::OriginalDestinationPort,
        ];
        let translated = vec![Match::Family(family), Match::DestinationTranslated];
        [
            (
                HOST_PORTS,
                rule(Action::VerdictMap(with_address(), self.conditions[1])),
            ),
            (
                HOST_PORTS,
                rule(Action::VerdictMap(without_address(), self.conditions[0])),
            ),
            (
                TRANSLATE,
                rule(Action::DestinationMap(
                    family,
                    with_address(),
                    self.addresses,
                )),
            ),
            (
                TRANSLATE,
                rule(Action::DestinationMap(
                    family,
                    without_address(),
                    self.ports,
                )),
            ),
            (
                "postrouting",
                Rule::new(translated, Action::VerdictMap(snat, self.snat)),
            ),
        ]
    }
}

/// The rules that containers share, by chain.
pub fn rules() -> Vec<(&'static str, Vec<Rule>)> {
    let jump = |chain: &str| Action::Jump(chain.to_owned());
    let to_host_ports = || vec![Rule::new(vec![Match::LocalDestination], jump(HOST_PORTS))];
    let rules = Maps::BOTH.into_iter().flat_map(Maps::rules);
    let of = |chain: &str| {
        let own = rules.clone().filter(|(of, _)| *of == chain);
        own.map(|(_, rule)| rule).collect::<Vec<Rule>>()
    };
    let to_translate = Rule::new(Vec::new(), jump(TRANSLATE));
    vec![
        ("prerouting", to_host_ports()),
        ("output", to_host_ports()),
        (HOST_PORTS, [of(HOST_PORTS), vec![to_translate]].concat()),
        (TRANSLATE, of(TRANSLATE)),
        ("postrouting", of("postrouting")),
    ]
}

/// Plans the shared objects that do not exist.
pub fn complete(nftables: &Nftables, batch: &mut Batch) -> Result<(), NftablesError> {
    let present = nftables.rules(TABLE, None)?;
    let rules = rules();
    let is_complete = |(chain, wanted): &(&str, Vec<Rule>)| has_only(&present, chain, wanted);
    if rules.iter().all(is_complete) {
        return Ok(());
    }
    batch.create_table(TABLE);
    for (map, map_type) in Maps::BOTH.into_iter().flat_map(Maps::types) {
        batch.create_map(TABLE, map, map_type);
    }
    for chain in [HOST_PORTS, TRANSLATE] {
        batch.create_chain(TABLE, chain);
    }
    for chain in BASE_CHAINS {
        batch.create_base_chain(TABLE, chain);
    }
    for (chain, rules) in &rules {
        batch.flush(TABLE, chain);
        for rule in rules {
            batch.append(TABLE, chain, rule);
        }
    }
    Ok(())
}

/// Plans the removal of all shared objects: of the table, unless it has the chain of route_localnet.
pub fn delete(nftables: &Nftables, batch: &mut Batch) -> Result<(), NftablesError> {
    if nftables.chain(TABLE, localnet::CHAIN.name)?.is_none() {
        batch.delete_table(TABLE);
        return Ok(());
    }
    let chains = BASE_CHAINS.map(|chain| chain.name);
    for chain in chains.into_iter().chain([HOST_PORTS, TRANSLATE]) {
        if nftables.chain(TABLE, chain)?.is_some() {
            batch.delete_chain(TABLE, chain);
        }
    }
    for map in Maps::BOTH.into_iter().flat_map(Maps::names) {
        batch.delete_map(TABLE, map);
    }
    Ok(())
}

/// Whether a chain has these rules and no others.
pub fn has_only(present: &[RuleEntry], chain: &str, wanted: &[Rule]) -> bool {
    let of_chain: Vec<&RuleEntry> = present.iter().filter(|rule| rule.chain == chain).collect();
    of_chain.len() == wanted.len() && of_chain.iter().zip(wanted).all(|(it, rule)| it.is(rule))
}
