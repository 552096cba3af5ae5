//! The text format of iptables-save(8) and iptables-restore(8).

/// A table as iptables-save(8) prints it.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// The names of its chains.
    pub chains: Vec<String>,
    /// The base chains whose policy is DROP.
    pub drop_policies: Vec<String>,
    /// Its rules, each with the `-A` and the chain at its beginning.
    pub rules: Vec<String>,
}

impl Listing {
    /// Reads the output of `iptables-save` for one table.
    pub fn parse(text: &str) -> Listing {
        let mut listing = Listing::default();
        for line in text.lines() {
            if let Some(chain) = line.strip_prefix(':') {
                let mut words = chain.split_whitespace();
                let name = words.next().unwrap_or_default().to_owned();
                if words.next() == Some("DROP") {
                    listing.drop_policies.push(name.clone());
                }
                listing.chains.push(name);
            } else if line.starts_with("-A ") {
                listing.rules.push(line.trim_end().to_owned());
            }
        }
        listing
    }

    pub fn has_chain(&self, name: &str) -> bool {
        self.chains.iter().any(|chain| chain == name)
    }

    pub fn has(&self, rule: &str) -> bool {
        self.rules.iter().any(|present| present == rule)
    }

    pub fn rules(&self) -> impl Iterator<Item = &String> {
        self.rules.iter()
    }

    /// The rules of a chain.
    pub fn rules_of<'l>(&'l self, chain: &str) -> impl Iterator<Item = &'l String> + use<'l> {
        let prefix = format!("-A {chain} ");
        let rules = self.rules.iter();
        rules.filter(move |rule| rule.starts_with(&prefix))
    }

    /// The rules that jump to a chain.
    pub fn jumps_to<'l>(&'l self, chain: &str) -> impl Iterator<Item = &'l String> + use<'l> {
        let target = format!(" -j {chain}");
        let rules = self.rules.iter();
        rules.filter(move |rule| rule.ends_with(&target))
    }
}

/// The lines that delete a chain with its rules.
pub fn emptying(chain: &str) -> [String; 2] {
    [format!("-F {chain}"), format!("-X {chain}")]
}

/// The line that deletes a rule.
pub fn deletion(rule: &str) -> String {
    match rule.strip_prefix("-A ") {
        Some(rest) => format!("-D {rest}"),
        None => rule.to_owned(),
    }
}

/// A transaction for iptables-restore(8); `None` without lines.
pub fn transaction(table: &str, lines: &[String]) -> Option<String> {
    let change = || format!("*{table}\n{}\nCOMMIT\n", lines.join("\n"));
    (!lines.is_empty()).then(change)
}

/// For tests: the listing after scripts ran on an empty table.
#[cfg(test)]
pub fn listing_after(scripts: &[&str]) -> Listing {
    let mut listing = Listing::default();
    for line in scripts.iter().flat_map(|script| script.lines()) {
        let (command, rest) = line.split_once(' ').unwrap_or_default();
        match command {
            "-N" => listing.chains.push(rest.to_owned()),
            "-X" => listing.chains.retain(|chain| chain != rest),
            "-F" => listing
                .rules
                .retain(|rule| !rule.starts_with(&format!("-A {rest} "))),
            "-A" => listing.rules.push(line.to_owned()),
            "-I" => {
                let (chain, rule) = rest.split_once(" 1 ").unwrap();
                listing.rules.insert(0, format!("-A {chain} {rule}"));
            }
            "-D" => {
                let rule = format!("-A {rest}");
                let index = listing.rules.iter().position(|it| *it == rule);
                listing.rules.remove(index.expect("the rule exists"));
            }
            _ => {}
        }
    }
    listing
}
