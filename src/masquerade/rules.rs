//! Masquerade rules as data: which rules an attachment has, and how the nat table comes to hold them or to lose them.
//!
//! Chain names, rule text and order within POSTROUTING are the reference's, so that either plugin takes down what the
//! other set up. Everything here is text in the language of iptables-save(8); nothing is run.

use std::net::IpAddr;

use sha2::{Digest, Sha512};

use crate::cni::request::Id;
use crate::net::{Cidr, Family};

/// The longest comment of a rule in bytes, without its terminator (XT_MAX_COMMENT_LEN, linux/netfilter/xt_comment.h).
const MAX_COMMENT: usize = 255;

/// The chain of a container on a network, shared by all its interfaces there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    name: String,
    comment: String,
}

impl Chain {
    /// The chain of that container on that network.
    pub fn of(network: &Id, container: &Id) -> Chain {
        let digest = Sha512::new()
            .chain_update(network.as_str())
            .chain_update(container.as_str());
        let hex: String = digest.finalize()[..12]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let mut comment = format!("name: \"{network}\" id: \"{container}\"");
        comment.truncate(MAX_COMMENT);
        Chain {
            name: format!("CNI-{hex}"),
            comment,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The rules that masquerade these addresses, which are of one family: first what stays unmasqueraded, then the
    /// masquerading, then the ways into the chain.
    fn rules(&self, addresses: &[Cidr]) -> Vec<String> {
        let Some(family) = addresses.first().map(|address| address.family()) else {
            return Vec::new();
        };
        let mut rules: Vec<String> = Vec::new();
        for address in addresses {
            let accept = self.rule(&self.name, &format!("-d {}", address.network()), "ACCEPT");
            if !rules.contains(&accept) {
                rules.push(accept);
            }
        }
        rules.push(self.masquerading(family));
        rules.extend(addresses.iter().map(|address| self.jump(address.address())));
        rules
    }

    fn masquerading(&self, family: Family) -> String {
        let multicast = match family {
            Family::V4 => "224.0.0.0/4",
            Family::V6 => "ff00::/8",
        };
        self.rule(&self.name, &format!("! -d {multicast}"), "MASQUERADE")
    }

    fn jump(&self, address: IpAddr) -> String {
        self.rule(
            "POSTROUTING",
            &format!("-s {}", Cidr::host(address)),
            &self.name,
        )
    }

    fn rule(&self, chain: &str, matching: &str, target: &str) -> String {
        let comment = self.comment.replace('"', "\\\"");
        format!("-A {chain} {matching} -m comment --comment \"{comment}\" -j {target}")
    }

    /// Makes the chain with its rules; the kernel refuses it when there is such a chain already.
    pub fn create(&self, addresses: &[Cidr]) -> String {
        transaction(
            [format!("-N {}", self.name)]
                .into_iter()
                .chain(self.rules(addresses)),
        )
    }

    /// Adds what a listing lacks for these addresses, each rule at its place; `None` when it lacks nothing.
    ///
    /// The chain is there because another interface of the container uses it, or was left by an ADD that died.
    pub fn complete(&self, addresses: &[Cidr], listing: &Listing) -> Option<String> {
        let new_chain = (!listing.has_chain(&self.name)).then(|| format!("-N {}", self.name));
        let missing = self
            .rules(addresses)
            .into_iter()
            .filter(|rule| !listing.has(rule));
        let first_in_chain = format!("-A {} -d ", self.name);
        // What is accepted must come before the masquerading that is there already.
        let placed = missing.map(|rule| match rule.strip_prefix(&first_in_chain) {
            Some(rest) if new_chain.is_none() => format!("-I {} 1 -d {rest}", self.name),
            _ => rule,
        });
        let lines: Vec<String> = new_chain.clone().into_iter().chain(placed).collect();
        (!lines.is_empty()).then(|| transaction(lines))
    }

    /// Takes down the chain of an attachment whose addresses are known; the kernel refuses it when anything of it is
    /// missing, or when another interface of the container uses the chain.
    pub fn destroy(&self, addresses: &[IpAddr]) -> String {
        let jumps = addresses
            .iter()
            .map(|address| deletion(&self.jump(*address)));
        transaction(jumps.chain(self.emptying()))
    }

    /// Takes down whatever a listing holds of an attachment: the ways into the chain from these addresses (all of them
    /// when they are not known), and the chain itself when no other way leads into it. `None` when there is nothing.
    pub fn clear(&self, addresses: Option<&[IpAddr]>, listing: &Listing) -> Option<String> {
        let target = format!("-j {}", self.name);
        let (mut lines, mut still_used) = (Vec::new(), false);
        for rule in listing.rules.iter().filter(|rule| rule.ends_with(&target)) {
            if addresses.is_none_or(|addresses| comes_from(rule, addresses)) {
                lines.push(deletion(rule));
            } else {
                still_used = true;
            }
        }
        if listing.has_chain(&self.name) && !still_used {
            lines.extend(self.emptying());
        }
        (!lines.is_empty()).then(|| transaction(lines))
    }

    fn emptying(&self) -> [String; 2] {
        [format!("-F {}", self.name), format!("-X {}", self.name)]
    }
}

/// Whether the source of a rule is one of the addresses, or a subnet with one of them, as old versions of the
/// reference wrote it.
fn comes_from(rule: &str, addresses: &[IpAddr]) -> bool {
    let mut words = rule
        .split_whitespace()
        .skip_while(|word| *word != "-s")
        .skip(1);
    let source: Option<Cidr> = words.next().and_then(|word| word.parse().ok());
    source.is_some_and(|source| addresses.iter().any(|address| source.contains(*address)))
}

fn deletion(rule: &str) -> String {
    match rule.strip_prefix("-A ") {
        Some(rest) => format!("-D {rest}"),
        None => rule.to_owned(),
    }
}

fn transaction(lines: impl IntoIterator<Item = String>) -> String {
    let lines: Vec<String> = lines.into_iter().collect();
    format!("*nat\n{}\nCOMMIT\n", lines.join("\n"))
}

/// What the nat table holds, as iptables-save(8) prints it.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    chains: Vec<String>,
    rules: Vec<String>,
}

impl Listing {
    /// Reads the output of `iptables-save -t nat`.
    pub fn parse(text: &str) -> Listing {
        let mut listing = Listing::default();
        for line in text.lines() {
            if let Some(chain) = line.strip_prefix(':') {
                listing
                    .chains
                    .extend(chain.split_whitespace().next().map(str::to_owned));
            } else if line.starts_with("-A ") {
                listing.rules.push(line.trim_end().to_owned());
            }
        }
        listing
    }

    fn has_chain(&self, name: &str) -> bool {
        self.chains.iter().any(|chain| chain == name)
    }

    fn has(&self, rule: &str) -> bool {
        self.rules.iter().any(|present| present == rule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMENT: &str = r#"-m comment --comment "name: \"spec-masq\" id: \"spec-ctr-0001\"""#;
    const NAME: &str = "CNI-9144d59fbceca2a02b5592f2";

    fn chain() -> Chain {
        Chain::of(
            &"spec-masq".parse().unwrap(),
            &"spec-ctr-0001".parse().unwrap(),
        )
    }

    fn cidrs(texts: &[&str]) -> Vec<Cidr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// The listing after a script ran on an empty table.
    fn listing_after(script: &str) -> Listing {
        let chains = script.lines().filter_map(|line| line.strip_prefix("-N "));
        let chains: String = chains.map(|chain| format!(":{chain} - [0:0]\n")).collect();
        Listing::parse(&(chains + script))
    }

    #[test]
    fn the_rules_are_the_references() {
        let expected = format!(
            "*nat\n-N {NAME}\n\
             -A {NAME} -d 10.104.0.0/24 {COMMENT} -j ACCEPT\n\
             -A {NAME} ! -d 224.0.0.0/4 {COMMENT} -j MASQUERADE\n\
             -A POSTROUTING -s 10.104.0.2/32 {COMMENT} -j {NAME}\nCOMMIT\n"
        );
        assert_eq!(chain().create(&cidrs(&["10.104.0.2/24"])), expected);
        let v6 = chain().create(&cidrs(&["fd00:109::2/64"]));
        assert!(
            v6.contains("-d fd00:109::/64 ") && v6.contains("! -d ff00::/8 "),
            "{v6}"
        );
        assert!(v6.contains("-A POSTROUTING -s fd00:109::2/128 "), "{v6}");
    }

    #[test]
    fn every_subnet_is_accepted_before_anything_is_masqueraded() {
        let script = chain().create(&cidrs(&["10.1.0.2/24", "10.2.0.2/24", "10.2.0.3/24"]));
        let targets: Vec<&str> = script
            .lines()
            .filter_map(|line| line.rsplit(' ').next())
            .collect();
        assert_eq!(
            targets[2..],
            ["ACCEPT", "ACCEPT", "MASQUERADE", NAME, NAME, NAME, "COMMIT"]
        );
    }

    #[test]
    fn a_second_interface_adds_only_what_is_missing_and_accepts_first() {
        let one = listing_after(&chain().create(&cidrs(&["10.1.0.2/24"])));
        let same_subnet = chain().complete(&cidrs(&["10.1.0.3/24"]), &one).unwrap();
        assert_eq!(
            same_subnet,
            format!("*nat\n-A POSTROUTING -s 10.1.0.3/32 {COMMENT} -j {NAME}\nCOMMIT\n")
        );
        let other_subnet = chain().complete(&cidrs(&["10.2.0.3/24"]), &one).unwrap();
        assert!(
            other_subnet.contains(&format!("-I {NAME} 1 -d 10.2.0.0/24 ")),
            "{other_subnet}"
        );
        assert_eq!(chain().complete(&cidrs(&["10.1.0.2/24"]), &one), None);
        let whole = chain().complete(&cidrs(&["10.1.0.2/24"]), &Listing::default());
        assert_eq!(whole, Some(chain().create(&cidrs(&["10.1.0.2/24"]))));
    }

    #[test]
    fn the_chain_goes_with_the_last_way_into_it() {
        let both = listing_after(&chain().create(&cidrs(&["10.1.0.2/24", "10.1.0.3/24"])));
        let first = chain().clear(Some(&ips(&["10.1.0.2"])), &both).unwrap();
        assert_eq!(
            first,
            format!("*nat\n-D POSTROUTING -s 10.1.0.2/32 {COMMENT} -j {NAME}\nCOMMIT\n")
        );
        let all = chain().clear(None, &both).unwrap();
        assert_eq!(all, chain().destroy(&ips(&["10.1.0.2", "10.1.0.3"])));
        assert_eq!(chain().clear(None, &Listing::default()), None);
    }

    #[test]
    fn a_way_in_from_the_whole_subnet_is_of_an_old_version_and_goes_too() {
        let old = format!(":{NAME} - [0:0]\n-A POSTROUTING -s 10.1.0.0/24 {COMMENT} -j {NAME}\n");
        let script = chain()
            .clear(Some(&ips(&["10.1.0.2"])), &Listing::parse(&old))
            .unwrap();
        assert!(
            script.contains("-D POSTROUTING -s 10.1.0.0/24 ") && script.contains("-X "),
            "{script}"
        );
    }
}
