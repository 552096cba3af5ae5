//! iptables: one `iptables-restore` transaction per family, for both variants of iptables.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Code, Error};
use crate::host::nftables::{CompatRule, Field, Layer, Nftables, RuleEntry, Table, Target};
use crate::host::process::{self, Output, ProcessError, Running};
use crate::host::xtables;
use crate::masquerade::rules::Listing;
use crate::net::Family;

/// How long a transaction may take, waiting for the lock of other users of iptables included.
pub(super) const LIMIT: Duration = Duration::from_secs(30);

/// The exit status of iptables when others hold its lock (RESOURCE_PROBLEM, include/xtables.h).
const LOCKED: i32 = 4;

/// How often rules are looked at again that others change at the same time.
const LOOKS: u32 = 50;

/// A table, and what it is for: errors begin with that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Purpose {
    /// Its name.
    pub table: &'static str,
    /// What is done in it.
    pub name: &'static str,
}

const MASQUERADE: Purpose = Purpose {
    table: "nat",
    name: "masquerade",
};

/// The programs of one family, for one table.
#[derive(Clone, Debug)]
pub struct Iptables {
    restore: PathBuf,
    save: PathBuf,
    purpose: Purpose,
}

/// A transaction on its way.
#[derive(Debug)]
pub struct Transaction(Running, Purpose);

/// A listing on its way.
#[derive(Debug)]
pub struct Saving(Running, Purpose);

/// How a transaction ended that could be tried.
#[derive(Debug)]
pub enum Outcome {
    /// All of it is in place.
    Committed,
    /// Nothing of it is; the error says why.
    Refused(Error),
}

impl Iptables {
    /// The programs of a family for the nat table; `None` where they are not installed.
    pub fn find(family: Family) -> Option<Iptables> {
        let name = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        Iptables::named(name, MASQUERADE)
    }

    /// Those of the legacy variant, where it is known to be in use; some systems have no names for it of its own.
    pub fn find_legacy(family: Family, purpose: Purpose) -> Option<Iptables> {
        let [legacy, plain] = match family {
            Family::V4 => ["iptables-legacy", "iptables"],
            Family::V6 => ["ip6tables-legacy", "ip6tables"],
        };
        let named = |name| Iptables::named(name, purpose);
        named(legacy).or_else(|| named(plain))
    }

    fn named(name: &str, purpose: Purpose) -> Option<Iptables> {
        let program = |part: &str| process::find(&format!("{name}-{part}"));
        Some(Iptables {
            restore: program("restore")?,
            save: program("save")?,
            purpose,
        })
    }

    /// Whether there may be a chain of that name in a family's nat table, found out without a process: the kernel is
    /// asked for the table of iptables-nft, and whether the legacy variant has one.
    pub fn may_have_chain(nftables: Option<&Nftables>, family: Family, name: &str) -> bool {
        // Who cannot tell says yes.
        let may = |it: &Nftables| Iptables::has_chain(it, family, name).unwrap_or(true);
        nftables.is_some_and(may) || xtables::has_table(family, "nat")
    }

    /// Whether there is a chain of that name in the table of iptables-nft; `None` when the kernel does not tell.
    pub fn has_chain(nftables: &Nftables, family: Family, name: &str) -> Option<bool> {
        let uses = nftables.chain(nat(family), name).ok()?;
        Some(uses.is_some())
    }

    /// Whether the kernel is seen to hold all these rules of a family, in the language of iptables, in the table of
    /// iptables-nft. What it cannot be seen to hold may be there all the same: [`Iptables::list`] tells.
    pub fn is_seen_to_hold(nftables: &Nftables, family: Family, rules: &[String]) -> bool {
        let mut listed: Vec<(&str, Vec<RuleEntry>)> = Vec::new();
        rules.iter().all(|rule| {
            let Some((chain, rule)) = parse(rule) else {
                return false;
            };
            if !listed.iter().any(|(name, _)| *name == chain) {
                let found = nftables.rules(nat(family), Some(chain));
                listed.push((chain, found.unwrap_or_default()));
            }
            let mut of_chain = listed.iter().filter(|(name, _)| *name == chain);
            of_chain.any(|(_, found)| rule.is_among(found))
        })
    }

    /// Starts a transaction.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(&self, script: &str) -> Result<Transaction, Error> {
        // Bounded, for nobody may be left to end it.
        let args = ["--noflush", "--wait=20"];
        process::start(&self.restore, &args, &[], script.as_bytes(), LIMIT)
            .map(|running| Transaction(running, self.purpose))
            .map_err(|cause| self.purpose.failure(cause))
    }

    /// Runs a transaction to its end.
    ///
    /// # Errors
    /// When it could not be tried or was refused.
    pub fn commit(&self, script: &str) -> Result<(), Error> {
        match self.start(script)?.finish()? {
            Outcome::Committed => Ok(()),
            Outcome::Refused(error) => Err(error),
        }
    }

    /// Sees what is there and changes what `plan` makes of it. Others may change some of that between the look and the
    /// deed, which then is refused; it is tried again as long as the next look shows something else.
    ///
    /// # Errors
    /// When the table cannot be listed, or refuses the same change twice.
    pub fn arrange(&self, plan: &dyn Fn(&Listing) -> Option<String>) -> Result<(), Error> {
        let mut refused: Option<(String, Error)> = None;
        for _ in 0..LOOKS {
            let Some(script) = plan(&self.list()?) else {
                return Ok(());
            };
            match refused.take() {
                Some((same, error)) if same == script => return Err(error),
                _ => {}
            }
            match self.commit(&script) {
                Ok(()) => return Ok(()),
                Err(error) => refused = Some((script, error)),
            }
        }
        refused.map_or(Ok(()), |(_, error)| Err(error))
    }

    /// What the table holds.
    ///
    /// # Errors
    /// When it cannot be listed.
    pub fn list(&self) -> Result<Listing, Error> {
        Ok(Listing::parse(&self.save(self.purpose.table)?))
    }

    /// A table in the language of iptables-save(8); nothing where the kernel has no such table.
    ///
    /// # Errors
    /// When it cannot be listed.
    pub fn save(&self, table: &str) -> Result<String, Error> {
        self.start_saving(table)?.finish()
    }

    /// Starts to list a table.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start_saving(&self, table: &str) -> Result<Saving, Error> {
        process::start(&self.save, &["-t", table], &[], b"", LIMIT)
            .map(|running| Saving(running, self.purpose))
            .map_err(|cause| self.purpose.failure(cause))
    }
}

impl Saving {
    /// Waits for its end; nothing where the kernel has no such table.
    ///
    /// # Errors
    /// When the table cannot be listed.
    pub fn finish(self) -> Result<String, Error> {
        let Saving(running, purpose) = self;
        let output = running.finish().map_err(|cause| purpose.failure(cause))?;
        if !output.status.success() {
            // The legacy variant's words for a kernel without this table.
            if output.complaint().contains("Table does not exist") {
                return Ok(String::new());
            }
            return Err(purpose.refusal("list", &output));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Transaction {
    /// Waits for its end.
    ///
    /// # Errors
    /// Code 11 when it did not end in time or others hold the lock, 999 when the program is broken.
    pub fn finish(self) -> Result<Outcome, Error> {
        let Transaction(running, purpose) = self;
        let output = running.finish().map_err(|cause| purpose.failure(cause))?;
        if output.status.success() {
            return Ok(Outcome::Committed);
        }
        let error = purpose.refusal("change", &output);
        if output.status.code() == Some(LOCKED) && output.complaint().contains("lock") {
            let error = Error {
                code: Code::TRY_AGAIN,
                ..error
            };
            return Err(match xtables::lock_holder() {
                Some(holder) => error.details(format!("the lock is held by {holder}")),
                None => error,
            });
        }
        Ok(Outcome::Refused(error))
    }
}

/// The table of iptables-nft.
fn nat(family: Family) -> Table {
    Table {
        layer: Layer::Ip(family),
        name: "nat",
    }
}

/// A rule with one address, a comment and a target without options, as iptables-save(8) writes it, and its chain.
fn parse(rule: &str) -> Option<(&str, CompatRule)> {
    let (matching, rest) = rule.split_once(" -m comment --comment \"")?;
    let (comment, target) = rest.rsplit_once("\" -j ")?;
    let words: Vec<&str> = matching.split(' ').collect();
    let (chain, field, network) = match words[..] {
        ["-A", chain, "-s", network] => (chain, Field::Source, network),
        ["-A", chain, "-d", network] => (chain, Field::Destination, network),
        ["-A", chain, "!", "-d", network] => (chain, Field::NotDestination, network),
        _ => return None,
    };
    let target = match target {
        "ACCEPT" => Target::Accept,
        "MASQUERADE" => Target::Masquerade,
        name if name.starts_with("CNI-") && !name.contains(' ') => Target::Chain(name.to_owned()),
        _ => return None,
    };
    let rule = CompatRule {
        field,
        network: network.parse().ok()?,
        comment: comment.replace("\\\"", "\""),
        target,
    };
    Some((chain, rule))
}

impl Purpose {
    fn refusal(self, operation: &str, output: &Output) -> Error {
        let Purpose { table, name } = self;
        let complaint = output.complaint();
        Error::failed(format!(
            "{name}: cannot {operation} the {table} table: {complaint}"
        ))
    }

    fn failure(self, cause: ProcessError) -> Error {
        let code = match cause {
            ProcessError::TimedOut { .. } | ProcessError::Terminated { .. } => Code::TRY_AGAIN,
            _ => Code::PLUGIN,
        };
        Error::new(code, format!("{}: {cause}", self.name))
    }
}
