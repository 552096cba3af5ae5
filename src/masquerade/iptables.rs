//! The iptables backend: one `iptables-restore` transaction per family, for both variants of iptables.

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

/// The programs of one family.
#[derive(Clone, Debug)]
pub struct Iptables {
    restore: PathBuf,
    save: PathBuf,
}

/// A transaction on its way.
#[derive(Debug)]
pub struct Transaction(Running);

/// A listing on its way.
#[derive(Debug)]
pub struct Saving(Running);

/// How a transaction ended that could be tried.
#[derive(Debug)]
pub enum Outcome {
    /// All of it is in place.
    Committed,
    /// Nothing of it is; the error says why.
    Refused(Error),
}

impl Iptables {
    /// The programs of a family; `None` where they are not installed.
    pub fn find(family: Family) -> Option<Iptables> {
        let (restore, save) = match family {
            Family::V4 => ("iptables-restore", "iptables-save"),
            Family::V6 => ("ip6tables-restore", "ip6tables-save"),
        };
        Some(Iptables {
            restore: process::find(restore)?,
            save: process::find(save)?,
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
            .map(Transaction)
            .map_err(failure)
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

    /// What the nat table holds.
    ///
    /// # Errors
    /// When it cannot be listed.
    pub fn list(&self) -> Result<Listing, Error> {
        Ok(Listing::parse(&self.save("nat")?))
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
            .map(Saving)
            .map_err(failure)
    }
}

impl Saving {
    /// Waits for its end; nothing where the kernel has no such table.
    ///
    /// # Errors
    /// When the table cannot be listed.
    pub fn finish(self) -> Result<String, Error> {
        let output = self.0.finish().map_err(failure)?;
        if !output.status.success() {
            // The legacy variant's words for a kernel without this table.
            if output.complaint().contains("Table does not exist") {
                return Ok(String::new());
            }
            return Err(refusal("list", &output));
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
        let output = self.0.finish().map_err(failure)?;
        if output.status.success() {
            return Ok(Outcome::Committed);
        }
        let error = refusal("change", &output);
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

fn refusal(operation: &str, output: &Output) -> Error {
    Error::failed(format!(
        "masquerade: cannot {operation} the nat table: {}",
        output.complaint()
    ))
}

fn failure(cause: ProcessError) -> Error {
    let code = match cause {
        ProcessError::TimedOut { .. } | ProcessError::Terminated { .. } => Code::TRY_AGAIN,
        _ => Code::PLUGIN,
    };
    Error::new(code, format!("masquerade: {cause}"))
}
