//! iptables: one `iptables-restore` transaction per family, for both variants of iptables.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Code, Error};
use crate::kernel::process::{self, Output, ProcessError, Running};
use crate::kernel::xtables;
use crate::net::Family;
use crate::netfilter::iptables_save::Listing;

/// How long a transaction may take, waiting for the lock of other users of iptables included.
pub(super) const LIMIT: Duration = Duration::from_secs(30);

/// The exit status of iptables when others hold its lock (RESOURCE_PROBLEM, include/xtables.h).
const LOCKED: i32 = 4;

/// How often rules are looked at again that others change at the same time.
const MAX_RETRIES: u32 = 50;

/// A table, and what it is for: errors begin with that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableUse {
    /// Its name.
    pub table: &'static str,
    /// What is done in it.
    pub name: &'static str,
}

const MASQUERADE: TableUse = TableUse {
    table: "nat",
    name: "masquerade",
};

/// A variant of iptables. Each has tables of its own, and its programs see only those.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// iptables-nft, which keeps its rules in nf_tables.
    Nft,
    /// iptables-legacy, with the kernel's older tables.
    Legacy,
}

impl Variant {
    /// That of the program of that name; `None` when it does not say.
    fn default_of(name: &str) -> Option<Variant> {
        let program = process::find(name)?;
        let output = process::run(&program, &["--version"], &[], b"", LIMIT).ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        // Before 1.8 there was the legacy variant alone, and the version did not name it.
        output
            .status
            .success()
            .then(|| match text.contains("nf_tables") {
                true => Variant::Nft,
                false => Variant::Legacy,
            })
    }
}

fn name_of(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

/// The programs of one family, for one table.
#[derive(Clone, Debug)]
pub struct Iptables {
    restore: PathBuf,
    save: PathBuf,
    table_use: TableUse,
}

/// A transaction on its way.
#[derive(Debug)]
pub struct Transaction(Running, TableUse);

/// A listing on its way.
#[derive(Debug)]
pub struct Saving(Running, TableUse);

/// How a transaction ended that could be tried.
#[derive(Debug)]
pub enum Outcome {
    /// All of it is in place.
    Committed,
    /// Nothing of it is; the error says why.
    Refused(Error),
}

impl Iptables {
    /// The programs of a family for the nat table, of the variant that is the default; `None` where they are not
    /// installed.
    pub fn find(family: Family) -> Option<Iptables> {
        Iptables::named(name_of(family), MASQUERADE)
    }

    /// The programs of a variant; `None` where they are not installed.
    pub fn of(variant: Variant, family: Family, table_use: TableUse) -> Option<Iptables> {
        let name = name_of(family);
        let suffix = match variant {
            Variant::Nft => "nft",
            Variant::Legacy => "legacy",
        };
        Iptables::named(&format!("{name}-{suffix}"), table_use).or_else(|| {
            // Where only one variant is installed, its programs may have no other names.
            Iptables::named(name, table_use).filter(|_| Variant::default_of(name) == Some(variant))
        })
    }

    /// The programs of a variant, for the nat table.
    pub fn nat(variant: Variant, family: Family) -> Option<Iptables> {
        Iptables::of(variant, family, MASQUERADE)
    }

    fn named(name: &str, table_use: TableUse) -> Option<Iptables> {
        // Those of one package, which are where PATH has the program that the Go plugins run.
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

    /// Starts a transaction.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(&self, script: &str) -> Result<Transaction, Error> {
        // Bounded, for nobody may be left to end it.
        let args = ["--noflush", "--wait=20"];
        process::start(&self.restore, &args, &[], script.as_bytes(), LIMIT)
            .map(|running| Transaction(running, self.table_use))
            .map_err(|cause| self.table_use.failure(cause))
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
    pub fn apply_with_retry(&self, plan: &dyn Fn(&Listing) -> Option<String>) -> Result<(), Error> {
        let mut refused: Option<(String, Error)> = None;
        for _ in 0..MAX_RETRIES {
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
        Ok(Listing::parse(&self.save(self.table_use.table)?))
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
            .map(|running| Saving(running, self.table_use))
            .map_err(|cause| self.table_use.failure(cause))
    }
}

impl Saving {
    /// Waits for its end; nothing where the kernel has no such table.
    ///
    /// # Errors
    /// When the table cannot be listed.
    pub fn finish(self) -> Result<String, Error> {
        let Saving(running, table_use) = self;
        let output = running.finish().map_err(|cause| table_use.failure(cause))?;
        if !output.status.success() {
            // The legacy variant's words for a kernel without this table.
            if output.stderr_summary().contains("Table does not exist") {
                return Ok(String::new());
            }
            return Err(table_use.refusal("list", &output));
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
        let Transaction(running, table_use) = self;
        let output = running.finish().map_err(|cause| table_use.failure(cause))?;
        if output.status.success() {
            return Ok(Outcome::Committed);
        }
        let error = table_use.refusal("change", &output);
        if output.status.code() == Some(LOCKED) && output.stderr_summary().contains("lock") {
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

impl TableUse {
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
