//! What the chain FORWARD does to a packet, as far as its rules can be followed on paper. Pure data.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::net::Cidr;

/// How deep jumps are followed; the kernel refuses loops.
const DEPTH: usize = 16;

/// A packet on its way through the host.
#[derive(Clone, Debug)]
pub struct Packet<'a> {
    /// What the connection tracking takes it for: `NEW` for the first of a connection, `ESTABLISHED` for an answer.
    pub state: &'static str,
    /// The link it comes in by.
    pub input: &'a str,
    /// The link it goes out by.
    pub output: &'a str,
    /// Where it is from.
    pub source: IpAddr,
    /// Where it is to.
    pub destination: IpAddr,
}

/// The filter table as iptables-save(8) prints it.
#[derive(Debug, Default)]
pub struct Filter {
    policy: String,
    chains: HashMap<String, Vec<String>>,
}

/// What becomes of a packet.
enum Verdict {
    Accept,
    Drop(String),
    /// No rule of the chain decided.
    Undecided,
}

impl Filter {
    /// Reads the output of `iptables-save -t filter`.
    pub fn parse(text: &str) -> Filter {
        let mut filter = Filter::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                [":FORWARD", policy, ..] => filter.policy = policy.to_owned(),
                ["-A", chain, ..] => filter
                    .chains
                    .entry(chain.to_owned())
                    .or_default()
                    .push(line.to_owned()),
                _ => {}
            }
        }
        filter
    }

    /// Why a packet is dropped; `None` when it passes, or when nothing says so.
    pub fn dropped(&self, packet: &Packet) -> Option<String> {
        match self.follow("FORWARD", packet, DEPTH) {
            Verdict::Accept => None,
            Verdict::Drop(rule) => Some(format!("the rule {rule}")),
            Verdict::Undecided if self.policy == "DROP" => {
                Some("the policy of FORWARD is DROP, and no rule accepts such packets".to_owned())
            }
            Verdict::Undecided => None,
        }
    }

    fn follow(&self, chain: &str, packet: &Packet, depth: usize) -> Verdict {
        let rules = self
            .chains
            .get(chain)
            .map(Vec::as_slice)
            .unwrap_or_default();
        for rule in rules.iter().filter(|_| depth > 0) {
            // What a rule asks for that is not known here, the packet may lack.
            let Some((jump, target)) = matched(rule, packet) else {
                continue;
            };
            match target {
                "ACCEPT" => return Verdict::Accept,
                "DROP" | "REJECT" => return Verdict::Drop(rule.clone()),
                "RETURN" => return Verdict::Undecided,
                target => match self.follow(target, packet, depth - 1) {
                    // From where a packet was sent on for good it does not come back here.
                    Verdict::Undecided if jump == "-j" => {}
                    decided => return decided,
                },
            }
        }
        Verdict::Undecided
    }
}

/// How a rule that certainly takes the packet sends it on, and whereto.
fn matched<'a>(rule: &'a str, packet: &Packet) -> Option<(&'a str, &'a str)> {
    let rule = rule
        .split_once(" -m comment --comment ")
        .map_or((rule, ""), |(before, after)| {
            // A comment is one word, or several in quotes.
            let rest = match after.strip_prefix('"') {
                Some(quoted) => end_of(quoted),
                None => after.split_once(' ').map_or("", |(_, rest)| rest),
            };
            (before, rest)
        });
    let mut words = rule
        .0
        .split_whitespace()
        .skip(2)
        .chain(rule.1.split_whitespace());
    let mut wanted = true;
    while let Some(word) = words.next() {
        let holds = match word {
            "!" => {
                wanted = false;
                continue;
            }
            "-i" => is_link(words.next()?, packet.input),
            "-o" => is_link(words.next()?, packet.output),
            "-s" => words
                .next()?
                .parse::<Cidr>()
                .is_ok_and(|cidr| cidr.contains(packet.source)),
            "-d" => words
                .next()?
                .parse::<Cidr>()
                .is_ok_and(|cidr| cidr.contains(packet.destination)),
            "-m" => {
                let module = words.next()?;
                if !matches!(module, "conntrack" | "state") {
                    return None;
                }
                continue;
            }
            "--ctstate" | "--state" => {
                let mut states = words.next()?.split(',');
                states.any(|state| state == packet.state)
            }
            "-j" | "-g" => return Some((word, words.next()?)),
            _ => return None,
        };
        if holds != wanted {
            return None;
        }
        wanted = true;
    }
    None
}

/// What follows the quote that ends a comment.
fn end_of(quoted: &str) -> &str {
    let mut escaped = false;
    for (at, letter) in quoted.char_indices() {
        match letter {
            '"' if !escaped => return &quoted[at + 1..],
            _ => escaped = letter == '\\' && !escaped,
        }
    }
    ""
}

/// `cni+` is every link whose name begins with "cni".
fn is_link(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('+') {
        Some(start) => name.starts_with(start),
        None => pattern == name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dropped(rules: &str) -> Option<String> {
        let packet = Packet {
            state: "NEW",
            input: "cni0",
            output: "eth0",
            source: "10.1.0.7".parse().unwrap(),
            destination: "198.51.100.1".parse().unwrap(),
        };
        Filter::parse(rules).dropped(&packet)
    }

    #[test]
    fn the_policy_decides_where_no_rule_does() {
        assert!(dropped(":FORWARD DROP [0:0]\n").unwrap().contains("policy"));
        assert_eq!(dropped(":FORWARD ACCEPT [0:0]\n"), None);
        assert_eq!(dropped(""), None);
    }

    #[test]
    fn rules_that_take_the_packet_decide() {
        let drop = ":FORWARD DROP [0:0]\n";
        for accepting in [
            "-A FORWARD -j ACCEPT",
            "-A FORWARD -i cni0 -j ACCEPT",
            "-A FORWARD -i cni+ ! -o cni0 -j ACCEPT",
            "-A FORWARD -m conntrack ! --ctstate INVALID -j ACCEPT",
            "-A FORWARD -m state --state NEW,ESTABLISHED -j ACCEPT",
            "-A FORWARD -s 10.1.0.0/16 -m comment --comment \"pods \\\"of\\\" all\" -j ACCEPT",
            "-A FORWARD -m comment --comment pods -j OURS\n-A OURS -i cni0 -j ACCEPT",
            "-A FORWARD -j OURS\n-A OURS -j RETURN\n-A FORWARD -s 10.1.0.7/32 -j ACCEPT",
        ] {
            assert_eq!(
                dropped(&format!("{drop}{accepting}\n")),
                None,
                "{accepting}"
            );
        }
        for passing_by in [
            "-A FORWARD -i docker0 -j ACCEPT",
            "-A FORWARD ! -i cni0 -j ACCEPT",
            "-A FORWARD -o cni0 -j ACCEPT",
            "-A FORWARD -d 10.1.0.0/16 -j ACCEPT",
            "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "-A FORWARD -p tcp -j ACCEPT",
            "-A FORWARD -j LOOP\n-A LOOP -j LOOP",
        ] {
            assert!(
                dropped(&format!("{drop}{passing_by}\n")).is_some(),
                "{passing_by}"
            );
        }
        let rule = dropped(
            ":FORWARD ACCEPT [0:0]\n-A FORWARD -i cni0 -j REJECT --reject-with icmp-port-unreachable\n",
        );
        assert!(rule.unwrap().contains("-i cni0 -j REJECT"));
    }
}
