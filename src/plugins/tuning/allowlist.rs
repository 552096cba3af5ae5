//! The administrator's list of sysctls that configurations may set.

use std::fs;
use std::io::ErrorKind;

use regex_lite::Regex;

use crate::error::Error;

const FILE: &str = "/etc/cni/tuning/allowlist.conf";

/// Rejects sysctls that match no expression of the list. Without the file, all are allowed.
///
/// # Errors
/// If one is not allowed, or the list cannot be read.
pub fn check<'n>(mut names: impl Iterator<Item = &'n str>) -> Result<(), Error> {
    let mut names = names.by_ref().peekable();
    if names.peek().is_none() {
        return Ok(());
    }
    match fs::read(FILE) {
        Ok(list) => {
            let list = String::from_utf8_lossy(&list);
            names.try_for_each(|name| check_listed(name, &list))
        }
        Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(()),
        Err(cause) => {
            let msg = format!("cannot read the list of allowed sysctls {FILE}: {cause}");
            Err(Error::failed(msg).details("no sysctl is allowed unless the list can be read"))
        }
    }
}

/// Each line is a regular expression, which may match any part of the name, as with the Go plugin. Of the syntax of RE2,
/// regex-lite lacks Unicode classes and `\Q…\E`: such a line is invalid.
fn check_listed(name: &str, list: &str) -> Result<(), Error> {
    let lines = list.lines().map(str::trim).enumerate();
    for (number, line) in lines.filter(|(_, line)| !line.is_empty()) {
        let expression = Regex::new(line).map_err(|cause| {
            let at = number + 1;
            Error::failed(format!(
                "{FILE}: line {at} is no regular expression: {cause}"
            ))
        })?;
        if expression.is_match(name) {
            return Ok(());
        }
    }
    let msg = format!("Sysctl {name} is not allowed: no line of {FILE} matches it");
    Err(Error::failed(msg).details("the administrator of the node can add a line to this file"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_must_match_a_part_of_a_line() {
        let list = "\n  ^net\\.ipv4\\.conf\\.IFNAME\\.[a-z_]*$ \nsomaxconn\n";
        assert_eq!(
            check_listed("net.ipv4.conf.IFNAME.arp_filter", list),
            Ok(())
        );
        assert_eq!(check_listed("net.core.somaxconn", list), Ok(()));
        for refused in ["net.ipv4.ip_forward", "net/ipv4/conf/IFNAME/arp_filter"] {
            assert!(
                check_listed(refused, list)
                    .unwrap_err()
                    .msg
                    .contains(refused)
            );
        }
        assert!(check_listed("net.core.somaxconn", "").is_err());
    }

    #[test]
    fn an_invalid_line_is_an_error_unless_an_earlier_one_matches() {
        assert_eq!(check_listed("net.core.somaxconn", "somaxconn\n("), Ok(()));
        let error = check_listed("net.core.somaxconn", "y\n(").unwrap_err();
        assert!(error.msg.contains("line 2"), "{error}");
    }
}
