//! Conditions (`conditionsV4`, `conditionsV6`) in the syntax of nft(8), which compiles them: the only use of a program,
//! once for each network.

use std::time::Duration;

use crate::cni::names::NetworkName;
use crate::error::{Code, Error};
use crate::kernel::nftables::RuleEntry;
use crate::kernel::process::{self, ProcessError};
use crate::net::Family;
use crate::netfilter::portmap::nftables::base::TRANSLATE;
use crate::netfilter::portmap::{Settings, TABLE};
use crate::netfilter::rule_comment::short_hash;

const LIMIT: Duration = Duration::from_secs(30);

/// The beginning of the names of networks' chains.
pub const PREFIX: &str = "network-";

/// The chain of a network whose packets must meet conditions.
pub fn chain_of(network: &NetworkName) -> String {
    format!("{PREFIX}{}", short_hash(network.as_str()))
}

/// Identifies the conditions, in the comments of the rules.
fn comment_of(settings: &Settings) -> String {
    let words = [&settings.conditions_v4, &settings.conditions_v6];
    short_hash(&words.map(|words| words.join(" ")).join("/"))
}

/// Whether the rules of a network's chain are those of the conditions.
pub fn are_current(settings: &Settings, rules: &[RuleEntry]) -> bool {
    let families = Family::BOTH.into_iter();
    let wanted = families.filter(|it| !settings.conditions(*it).is_empty());
    let comment = comment_of(settings);
    rules.len() == wanted.count() && rules.iter().all(|rule| rule.comment == comment)
}

/// Replaces the rules of a network's chain, which exists.
///
/// # Errors
/// When nft is not installed or rejects the conditions.
pub fn install(chain: &str, settings: &Settings) -> Result<(), Error> {
    let program = process::find("nft").ok_or_else(|| {
        Error::failed("portmap: conditions in the syntax of nftables need the program nft")
            .details("looked in PATH and in the system's directories; install the package nftables")
    })?;
    let table = TABLE.name;
    let mut script = format!("flush chain inet {table} {chain}\n");
    for family in Family::BOTH {
        let conditions = settings.conditions(family).join(" ");
        if !conditions.is_empty() {
            let protocol = match family {
                Family::V4 => "ipv4",
                Family::V6 => "ipv6",
            };
            let comment = comment_of(settings);
            script += &format!(
                "add rule inet {table} {chain} meta nfproto {protocol} {conditions} goto {TRANSLATE} comment \"{comment}\"\n"
            );
        }
    }
    let output = process::run(&program, &["-f", "-"], &[], script.as_bytes(), LIMIT);
    let output = output.map_err(|cause| {
        let code = match cause {
            ProcessError::TimedOut { .. } | ProcessError::Terminated { .. } => Code::TRY_AGAIN,
            _ => Code::PLUGIN,
        };
        Error::new(code, format!("portmap: {cause}"))
    })?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let what = "portmap: nft rejects conditionsV4 or conditionsV6";
            Err(Error::failed(format!(
                "{what}: {}",
                output.stderr_summary()
            )))
        }
    }
}
