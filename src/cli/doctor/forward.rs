//! Evaluates the chain FORWARD for a packet, as far as its rules use known matches. Pure data.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::net::Cidr;

/// The maximum depth of jumps. The kernel refuses loops.
const MAX_DEPTH: usize = 16;

/// A packet that the host forwards.
#[derive(Clone, Debug)]
pub struct Packet<'a> {
    /// The state of its connection: `NEW` for the first packet, `ESTABLISHED` for a reply.
    pub state: &'static str,
    pub input: &'a str,
    pub output: &'a str,
    pub source: IpAddr,
    pub destination: IpAddr,
}

/// The filter table as iptables-save(8) prints it.
#[derive(Debug, Default)]
pub struct Filter {
    policy: String,
    chains: HashMap<String, Vec<String>>,
}

enum Verdict {
    Accept,
    /// The rule that drops the packet.
    Drop(String),
    /// No rule of the chain has decided.
    Continue,
}

impl Filter {
    /// Parses the output of `iptables-save -t filter`.
    pub fn parse(text: &str) -> Filter {
        let mut filter = Filter::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                [":FORWARD", policy, ..] => filter.policy = policy.to_owned(),
                ["-A", chain, ..] => {
                    let rules = filter.chains.entry(chain.to_owned());
                    rules.or_default().push(line.to_owned());
                }
                _ => {}
            }
        }
        filter
    }

    /// The rule or policy that drops a packet; `None` if it is accepted.
    pub fn drop_reason(&self, packet: &Packet) -> Option<String> {
        match self.evaluate("FORWARD", packet, MAX_DEPTH) {
            Verdict::Drop(rule) => Some(format!("the rule {rule}")),
            Verdict::Continue if self.policy == "DROP" => {
                Some("the policy of FORWARD is DROP, and no rule accepts such packets".to_owned())
            }
            Verdict::Accept | Verdict::Continue => None,
        }
    }

    fn evaluate(&self, chain: &str, packet: &Packet, depth: usize) -> Verdict {
        let rules = self.chains.get(chain).into_iter().flatten();
        for rule in rules.filter(|_| depth > 0) {
            let Some((option, target)) = target_of(rule, packet) else {
                continue;
            };
            match target.as_str() {
                "ACCEPT" => return Verdict::Accept,
                "DROP" | "REJECT" => return Verdict::Drop(rule.clone()),
                "RETURN" => return Verdict::Continue,
                target => match self.evaluate(target, packet, depth - 1) {
                    // After a goto (-g), evaluation continues in the chain that called this one.
                    Verdict::Continue if option == "-j" => {}
                    verdict => return verdict,
                },
            }
        }
        Verdict::Continue
    }
}

/// `-j` or `-g` and the target of a rule, if it matches the packet. A rule with an unknown match counts as not matching.
fn target_of(rule: &str, packet: &Packet) -> Option<(String, String)> {
    let has = |cidr: &str, address| cidr.parse::<Cidr>().is_ok_and(|it| it.contains(address));
    let mut words = words(rule).into_iter().skip(2);
    let mut is_negated = false;
    loop {
        let option = words.next()?;
        if option == "!" {
            is_negated = true;
            continue;
        }
        let value = words.next()?;
        let is_match = match (option.as_str(), value.as_str()) {
            ("-i", name) => is_link(name, packet.input),
            ("-o", name) => is_link(name, packet.output),
            ("-s", cidr) => has(cidr, packet.source),
            ("-d", cidr) => has(cidr, packet.destination),
            ("--ctstate" | "--state", states) => states.split(',').any(|it| it == packet.state),
            ("-m", "conntrack" | "state" | "comment") | ("--comment", _) => true,
            ("-j" | "-g", _) => return Some((option, value)),
            _ => return None,
        };
        if is_match == is_negated {
            return None;
        }
        is_negated = false;
    }
}

/// The words of a rule. A word in double quotes can contain spaces, and quotes after a backslash.
fn words(rule: &str) -> Vec<String> {
    let (mut words, mut word, mut is_quoted) = (Vec::new(), String::new(), false);
    let mut letters = rule.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => is_quoted = !is_quoted,
            '\\' => word.extend(letters.next()),
            ' ' if !is_quoted => words.push(std::mem::take(&mut word)),
            letter => word.push(letter),
        }
    }
    words.push(word);
    words
}

/// Whether a link matches a pattern: `cni+` matches all names that begin with "cni".
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
        Filter::parse(rules).drop_reason(&packet)
    }

    #[test]
    fn without_a_matching_rule_the_policy_decides() {
        assert!(dropped(":FORWARD DROP [0:0]\n").unwrap().contains("policy"));
        assert_eq!(dropped(":FORWARD ACCEPT [0:0]\n"), None);
        assert_eq!(dropped(""), None);
    }

    #[test]
    fn the_first_matching_rule_with_a_verdict_decides() {
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
        for other in [
            "-A FORWARD -i docker0 -j ACCEPT",
            "-A FORWARD ! -i cni0 -j ACCEPT",
            "-A FORWARD -o cni0 -j ACCEPT",
            "-A FORWARD -d 10.1.0.0/16 -j ACCEPT",
            "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "-A FORWARD -p tcp -j ACCEPT",
            "-A FORWARD -j LOOP\n-A LOOP -j LOOP",
        ] {
            assert!(dropped(&format!("{drop}{other}\n")).is_some(), "{other}");
        }
        let rule = dropped(
            ":FORWARD ACCEPT [0:0]\n-A FORWARD -i cni0 -j REJECT --reject-with icmp-port-unreachable\n",
        );
        assert!(rule.unwrap().contains("-i cni0 -j REJECT"));
    }
}
