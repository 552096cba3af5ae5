//! iptables: one `iptables-restore` transaction per family, for both variants of iptables.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Code, Error};
use crate::kernel::process::{self, Output, ProcessError};
use crate::kernel::xtables;
use crate::net::Family;
use crate::netfilter::iptables_save::Listing;

/// Time limit of a transaction, including the wait for the xtables lock.
pub(super) const LIMIT: Duration = Duration::from_secs(30);

/// The exit status of iptables if the xtables lock is held (RESOURCE_PROBLEM, include/xtables.h).
const LOCKED: i32 = 4;

/// The comment of iptables-nft-save in place of a table with rules that only nft(8) can list.
const INCOMPATIBLE: &str = "is incompatible, use 'nft' tool";

/// The number of attempts if the table is changed concurrently.
const MAX_RETRIES: u32 = 50;

/// The number of attempts with the same transaction.
const MAX_REFUSALS: usize = 3;

/// A table, and the feature that uses it, for errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableUse {
    pub table: &'static str,
    pub name: &'static str,
}

const MASQUERADE: TableUse = TableUse {
    table: "nat",
    name: "masquerade",
};

/// A variant of iptables. Each has its own tables, and its programs see only those.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// iptables-nft, which keeps its rules in nf_tables.
    Nft,
    /// iptables-legacy, with the kernel's older tables.
    Legacy,
}

impl Variant {
    /// The variant of a program; `None` if it fails.
    fn default_of(name: &str) -> Option<Variant> {
        let program = process::find(name)?;
        let output = process::run(&program, &["--version"], &[], b"", LIMIT).ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        // Before 1.8 there was only the legacy variant, which the version does not name.
        output
            .status
            .success()
            .then(|| match text.contains("nf_tables") {
                true => Variant::Nft,
                false => Variant::Legacy,
            })
    }
}

/// Checks the name of a chain in a configuration; it becomes a part of a rule.
///
/// # Errors
/// Code 7, with the key.
pub fn check_chain_name(key: &str, name: &str) -> Result<(), Error> {
    let is_valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
    // XT_EXTENSION_MAXNAMELEN (linux/netfilter/x_tables.h)
    let is_short = (1..=28).contains(&name.len());
    match is_short && name.chars().all(is_valid) && !name.starts_with('-') {
        true => Ok(()),
        false => {
            let wanted = "it must be the name of a chain: 1 to 28 letters, digits, \"-\", \"_\", \".\" and \":\"";
            Err(Error::config(key, format!("{name:?}"), wanted))
        }
    }
}

fn name_of(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

/// The programs of one address family, for one table.
#[derive(Clone, Debug)]
pub struct Iptables {
    restore: PathBuf,
    save: PathBuf,
    table_use: TableUse,
}

/// The outcome of a transaction.
#[derive(Debug)]
pub enum Outcome {
    Committed,
    /// Nothing was changed.
    Refused(Error),
}

impl Iptables {
    /// The programs of the default variant for the nat table; `None` if they are not installed.
    pub fn find(family: Family) -> Option<Iptables> {
        Iptables::default_for(family, MASQUERADE)
    }

    /// The programs of the default variant for a table; `None` if they are not installed.
    pub fn default_for(family: Family, table_use: TableUse) -> Option<Iptables> {
        Iptables::named(name_of(family), table_use)
    }

    /// The programs of the default variant for a table.
    ///
    /// # Errors
    /// When they are not installed.
    pub fn required(family: Family, table_use: TableUse) -> Result<Iptables, Error> {
        Iptables::default_for(family, table_use).ok_or_else(|| {
            let what = format!(
                "{}: {}-restore is not installed: it is needed for {family}",
                table_use.name,
                name_of(family)
            );
            Error::failed(what).details(
                "looked in PATH and in the system's directories; install the package iptables, or set backend to nftables",
            )
        })
    }

    /// The programs of a variant; `None` if they are not installed.
    pub fn of(variant: Variant, family: Family, table_use: TableUse) -> Option<Iptables> {
        let name = name_of(family);
        let suffix = match variant {
            Variant::Nft => "nft",
            Variant::Legacy => "legacy",
        };
        Iptables::named(&format!("{name}-{suffix}"), table_use).or_else(|| {
            // If only one variant is installed, its programs may have no name with a suffix.
            Iptables::named(name, table_use).filter(|_| Variant::default_of(name) == Some(variant))
        })
    }

    /// The programs of a variant, for the nat table.
    pub fn nat(variant: Variant, family: Family) -> Option<Iptables> {
        Iptables::of(variant, family, MASQUERADE)
    }

    fn named(name: &str, table_use: TableUse) -> Option<Iptables> {
        // From the directory of the program that PATH finds and the Go plugins run, so that all are of one package.
        let directory = process::find(name).and_then(|it| it.parent().map(Path::to_owned));
        let program = |part: &str| {
            let name = format!("{name}-{part}");
            let beside = directory.as_ref().map(|directory| directory.join(&name));
            let beside = beside.filter(|program| process::is_executable(program));
            beside.or_else(|| process::find(&name))
        };
        Some(Iptables {
            restore: program("restore")?,
            save: program("save")?,
            table_use,
        })
    }

    /// Whether the programs are those of iptables-nft, by the name of their file.
    pub fn is_nft(&self) -> bool {
        let file = std::fs::canonicalize(&self.restore).unwrap_or_default();
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        name.contains("nft")
    }

    /// Runs a transaction.
    ///
    /// # Errors
    /// Code 11 when it timed out or the xtables lock is held, 999 when the program cannot be run.
    pub fn commit(&self, script: &str) -> Result<Outcome, Error> {
        // With a time limit, because this process may be killed before it ends.
        let args = ["--noflush", "--wait=20"];
        let output = process::run(&self.restore, &args, &[], script.as_bytes(), LIMIT);
        let output = output.map_err(|cause| self.table_use.failure(cause))?;
        if output.status.success() {
            return Ok(Outcome::Committed);
        }
        let error = self.table_use.refusal("change", &output);
        if output.status.code() == Some(LOCKED) && output.stderr_summary().contains("lock") {
            let error = error.with_code(Code::TRY_AGAIN);
            return Err(match xtables::lock_holder() {
                Some(holder) => error.details(format!("the lock is held by {holder}")),
                None => error,
            });
        }
        Ok(Outcome::Refused(error))
    }

    /// Lists the table and applies the change that `plan` derives from it. If the change is refused because another
    /// program has changed the table meanwhile, this is repeated.
    ///
    /// # Errors
    /// When the table cannot be listed, or refuses the same change repeatedly.
    pub fn apply_with_retry(&self, plan: &dyn Fn(&Listing) -> Option<String>) -> Result<(), Error> {
        let mut refusals: Vec<(String, Error)> = Vec::new();
        for _ in 0..MAX_RETRIES {
            let Some(script) = plan(&self.list()?) else {
                return Ok(());
            };
            // A concurrent removal and installation may leave the table as it was.
            refusals.retain(|(refused, _)| *refused == script);
            if refusals.len() >= MAX_REFUSALS {
                break;
            }
            match self.commit(&script) {
                Ok(Outcome::Committed) => return Ok(()),
                Ok(Outcome::Refused(error)) | Err(error) => refusals.push((script, error)),
            }
        }
        refusals.pop().map_or(Ok(()), |(_, error)| Err(error))
    }

    ///
    /// # Errors
    /// When it cannot be listed.
    pub fn list(&self) -> Result<Listing, Error> {
        Ok(Listing::parse(&self.save(self.table_use.table)?))
    }

    /// A table in the format of iptables-save(8); empty if the kernel has no such table.
    ///
    /// # Errors
    /// When it cannot be listed.
    pub fn save(&self, table: &str) -> Result<String, Error> {
        let table_use = self.table_use;
        let output = process::run(&self.save, &["-t", table], &[], b"", LIMIT);
        let output = output.map_err(|cause| table_use.failure(cause))?;
        if !output.status.success() {
            // The message of iptables-legacy on a kernel without this table.
            if output.stderr_summary().contains("Table does not exist") {
                return Ok(String::new());
            }
            return Err(table_use.refusal("list", &output));
        }
        let listing = String::from_utf8_lossy(&output.stdout).into_owned();
        // iptables-nft-save succeeds if it cannot express a rule, and prints a comment instead of the table.
        if listing.contains(INCOMPATIBLE) {
            return Err(table_use.incompatible());
        }
        Ok(listing)
    }
}

impl TableUse {
    fn incompatible(self) -> Error {
        let TableUse { table, name } = self;
        let msg = format!("{name}: cannot list the {table} table: iptables cannot read its rules");
        Error::failed(msg).details(
            "nft added rules or sets that iptables lacks: move them to a table of their own (nft list ruleset)",
        )
    }

    fn refusal(self, operation: &str, output: &Output) -> Error {
        let TableUse { table, name } = self;
        let stderr_summary = output.stderr_summary();
        Error::failed(format!(
            "{name}: cannot {operation} the {table} table: {stderr_summary}"
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
