//! The environment of a plugin (CNI spec 1.1, section 2 "Execution Protocol", "Parameters").

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use crate::cni::names::{Attachment, ContainerId};
use crate::error::{Code, Error};
use crate::net::IfName;

/// CNI_COMMAND.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Command {
    const ALL: [Command; 6] = [
        Command::Add,
        Command::Del,
        Command::Check,
        Command::Gc,
        Command::Status,
        Command::Version,
    ];

    pub fn named(name: &str) -> Option<Command> {
        let mut commands = Command::ALL.into_iter();
        commands.find(|command| command.as_str() == name)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Command::Add => "ADD",
            Command::Del => "DEL",
            Command::Check => "CHECK",
            Command::Gc => "GC",
            Command::Status => "STATUS",
            Command::Version => "VERSION",
        }
    }

    fn required_variables(self) -> &'static [&'static str] {
        match self {
            Command::Add | Command::Check => {
                &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"]
            }
            Command::Del => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
            Command::Gc | Command::Status => &["CNI_PATH"],
            Command::Version => &[],
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The attachment of ADD and CHECK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub attachment: Attachment,
    /// CNI_NETNS: the path of the container's network namespace.
    pub netns: String,
}

/// The attachment of DEL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DelTarget {
    pub attachment: Attachment,
    /// CNI_NETNS; `None` if it is empty or unset, because the container no longer exists.
    pub netns: Option<String>,
}

/// The requested operation and its required parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    Add(Target),
    Check(Target),
    Del(DelTarget),
    Gc,
    Status,
    Version,
}

/// Environment variables.
#[derive(Clone, Debug)]
pub struct Environment(BTreeMap<String, OsString>);

impl Environment {
    pub fn of_process() -> Environment {
        std::env::vars_os().collect()
    }

    /// The value of a variable; `None` if it is unset or empty. Bytes that are not UTF-8 become U+FFFD, which is not
    /// valid in an identifier.
    pub fn var(&self, name: &str) -> Option<String> {
        let value = self.0.get(name)?.to_string_lossy();
        (!value.is_empty()).then(|| value.into_owned())
    }
}

impl<K: Into<OsString>> FromIterator<(K, OsString)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, OsString)>>(vars: I) -> Environment {
        let key = |name: OsString| name.to_string_lossy().into_owned();
        Environment(
            vars.into_iter()
                .map(|(name, value)| (key(name.into()), value))
                .collect(),
        )
    }
}

/// The parsed environment.
#[derive(Clone, Debug)]
pub struct Invocation {
    pub command: Command,
    pub operation: Operation,
    /// CNI_PATH, split. An empty element is the current directory.
    pub cni_path: Vec<PathBuf>,
    /// CNI_ARGS, unparsed; see [`crate::cni::args::Args`].
    pub args: String,
    /// CNI_NETNS_OVERRIDE: CNI_NETNS may be the plugin's own namespace.
    pub own_netns_allowed: bool,
}

impl Invocation {
    /// # Errors
    /// Code 4: an unknown command, an invalid identifier, or a list of all missing variables.
    pub fn parse(env: &Environment) -> Result<Invocation, Error> {
        let command = match env.var("CNI_COMMAND") {
            Some(text) => parse_command(&text)?,
            None => return Err(missing_variables(&["CNI_COMMAND"])),
        };
        let required = command.required_variables();
        let identifier = |name| env.var(name).filter(|_| required.contains(&name));
        // Reported before missing variables.
        let container = identifier("CNI_CONTAINERID").map(parse_container);
        let interface = identifier("CNI_IFNAME").map(parse_interface);
        let (container, interface) = (container.transpose()?, interface.transpose()?);
        let mut missing = required.to_vec();
        missing.retain(|name| env.var(name).is_none());
        if !missing.is_empty() {
            return Err(missing_variables(&missing));
        }
        let attachment = container
            .zip(interface)
            .map(|(container, interface)| Attachment {
                container,
                interface,
            });
        let var = |name| env.var(name).unwrap_or_default();
        let target = |attachment| Target {
            attachment,
            netns: var("CNI_NETNS"),
        };
        let operation = match (command, attachment) {
            (Command::Add, Some(attachment)) => Operation::Add(target(attachment)),
            (Command::Check, Some(attachment)) => Operation::Check(target(attachment)),
            (Command::Del, Some(attachment)) => Operation::Del(DelTarget {
                attachment,
                netns: env.var("CNI_NETNS"),
            }),
            (Command::Add | Command::Check | Command::Del, None) => {
                unreachable!("missing variables were reported above")
            }
            (Command::Gc, _) => Operation::Gc,
            (Command::Status, _) => Operation::Status,
            (Command::Version, _) => Operation::Version,
        };
        Ok(Invocation {
            command,
            operation,
            cni_path: std::env::split_paths(&var("CNI_PATH")).collect(),
            args: var("CNI_ARGS"),
            own_netns_allowed: is_true(&var("CNI_NETNS_OVERRIDE")),
        })
    }
}

fn invalid(msg: String) -> Error {
    Error::new(Code::INVALID_ENVIRONMENT, msg)
}

fn missing_variables(names: &[&str]) -> Error {
    let list = names.join(",");
    invalid(format!("required env variables [{list}] missing"))
        .details("the runtime sets them; an empty one counts as missing")
}

fn parse_command(text: &str) -> Result<Command, Error> {
    Command::named(text).ok_or_else(|| {
        let all = Command::ALL.map(Command::as_str).join(", ");
        invalid(format!(
            "unknown CNI_COMMAND {text:?}: it must be one of {all}"
        ))
    })
}

fn parse_container(text: String) -> Result<ContainerId, Error> {
    text.parse()
        .map_err(|cause| invalid(format!("invalid CNI_CONTAINERID {text:?}: {cause}")))
}

fn parse_interface(text: String) -> Result<IfName, Error> {
    text.parse()
        .map_err(|cause| invalid(format!("invalid CNI_IFNAME: {cause}")))
}

/// `1`, or `true` in any case.
pub(super) fn is_true(text: &str) -> bool {
    text == "1" || text.eq_ignore_ascii_case("true")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(vars: &[(&str, &str)]) -> Environment {
        vars.iter()
            .map(|(name, value)| (*name, OsString::from(value)))
            .collect()
    }

    const ADD: [(&str, &str); 5] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/a:/b"),
    ];

    #[test]
    fn an_add_is_parsed() {
        let request = Invocation::parse(&env(&ADD)).unwrap();
        assert_eq!(request.command, Command::Add);
        assert_eq!(request.cni_path, [PathBuf::from("/a"), PathBuf::from("/b")]);
        let Operation::Add(Target { attachment, netns }) = request.operation else {
            panic!()
        };
        assert_eq!(
            (attachment.to_string().as_str(), netns.as_str()),
            ("container c1 interface eth0", "/run/netns/x")
        );
    }

    #[test]
    fn all_missing_variables_are_named_at_once_in_the_specs_order() {
        let error =
            Invocation::parse(&env(&[("CNI_COMMAND", "ADD"), ("CNI_NETNS", "")])).unwrap_err();
        assert_eq!(error.code, Code::INVALID_ENVIRONMENT);
        assert!(
            error
                .msg
                .contains("[CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH]"),
            "{error}"
        );
    }

    #[test]
    fn a_del_needs_no_netns_and_gc_no_attachment() {
        let mut del = ADD.to_vec();
        del.retain(|(name, _)| *name != "CNI_NETNS");
        del[0].1 = "DEL";
        let request = Invocation::parse(&env(&del)).unwrap();
        assert!(matches!(
            request.operation,
            Operation::Del(DelTarget { netns: None, .. })
        ));
        let gc = [
            ("CNI_COMMAND", "GC"),
            ("CNI_PATH", "/a"),
            ("CNI_CONTAINERID", "!junk"),
        ];
        assert_eq!(
            Invocation::parse(&env(&gc)).unwrap().operation,
            Operation::Gc
        );
    }

    #[test]
    fn errors_quote_invalid_identifiers() {
        for (name, value) in [
            ("CNI_COMMAND", "add"),
            ("CNI_CONTAINERID", "_c"),
            ("CNI_CONTAINERID", "a/b"),
            ("CNI_CONTAINERID", "a\n"),
            ("CNI_CONTAINERID", "ä"),
            ("CNI_IFNAME", "1234567890123456"),
            ("CNI_IFNAME", "a:b"),
        ] {
            let mut vars = ADD.to_vec();
            vars.retain(|(key, _)| *key != name);
            vars.push((name, value));
            let error = Invocation::parse(&env(&vars)).unwrap_err();
            assert_eq!(error.code, Code::INVALID_ENVIRONMENT);
            assert!(error.msg.contains(&format!("{value:?}")), "{error}");
        }
    }
}
