//! The actions of a history. A sequence file has one action per line:
//!
//! ```text
//! gangplank add p0 gw eth0             a plugin call: implementation, verb, container, network, interface
//! go del p0 gw eth0 netns=none         options: netns=none|missing|pN, prev=no, config=now, kill=MICROSECONDS
//! gangplank gc gw                      GC of a network; all live attachments are valid
//! gangplank gc gw without=p0           the same, except those of a pod
//! gangplank status gw
//! cli reconcile                        a command of the gangplank CLI, with the node's directories
//! config gw bridge=br9                 changes a network's configuration; later calls use it
//! end p0                               the pod's namespace is deleted without DEL
//! reboot                               pods, links and rules are deleted, leases stay, the boot ID changes
//! node ip link set br0 down            a shell command on the node, by an administrator or another tool
//! ```
//!
//! A shell command may use `$p0_gw_eth0` for the attachment's interface on the host and `$p0_gw_eth0_ip` for its first
//! address. A failed command is not an error: every subsequence must be valid, because minimizing removes actions.

use std::fmt;
use std::str::FromStr;

pub use crate::implementation::Implementation;

/// The names that identify an attachment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    pub pod: String,
    pub network: String,
    pub ifname: String,
}

/// The verbs that concern one attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Add,
    Del,
    Check,
}

/// CNI_NETNS of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NetnsArgument {
    /// The container's own.
    #[default]
    Own,
    /// Empty.
    Unset,
    /// A path that does not exist.
    Missing,
    /// The path of another pod's namespace.
    Of(String),
}

/// Options of a plugin call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub netns: NetnsArgument,
    /// Leaves prevResult out.
    pub without_prev_result: bool,
    /// Uses the current configuration of the network instead of that of the ADD.
    pub current_config: bool,
    /// Kills the plugin and its children after this many microseconds.
    pub kill_after: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Call(Implementation, Verb, Target, Options),
    /// The last field is a pod whose attachments are missing in the list of valid ones.
    Gc(Implementation, String, Option<String>),
    Status(Implementation, String),
    Cli(String),
    Config {
        network: String,
        key: String,
        value: String,
    },
    End(String),
    Reboot,
    Node(String),
}

impl Action {
    /// Whether gangplank acts. All other actions are foreign.
    pub fn is_gangplank(&self) -> bool {
        match self {
            Action::Call(by, ..) | Action::Gc(by, ..) | Action::Status(by, _) => {
                *by == Implementation::Gangplank
            }
            Action::Cli(_) => true,
            _ => false,
        }
    }
}

impl Action {
    pub fn options(&mut self) -> Option<&mut Options> {
        match self {
            Action::Call(_, _, _, options) => Some(options),
            _ => None,
        }
    }

    /// The kind of action.
    pub fn name(&self) -> &str {
        match self {
            Action::Call(_, verb, ..) => verb.command(),
            Action::Gc(..) => "GC",
            Action::Status(..) => "STATUS",
            Action::Cli(words) => words,
            Action::Config { .. } | Action::End(_) | Action::Reboot | Action::Node(_) => "other",
        }
    }
}

/// The name of an implementation in sequence files.
fn word(implementation: Implementation) -> &'static str {
    match implementation {
        Implementation::Gangplank => "gangplank",
        Implementation::Go => "go",
    }
}

impl Verb {
    /// CNI_COMMAND.
    pub fn command(self) -> &'static str {
        match self {
            Verb::Add => "ADD",
            Verb::Del => "DEL",
            Verb::Check => "CHECK",
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.pod, self.network, self.ifname)
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.netns {
            NetnsArgument::Own => {}
            NetnsArgument::Unset => f.write_str(" netns=none")?,
            NetnsArgument::Missing => f.write_str(" netns=missing")?,
            NetnsArgument::Of(pod) => write!(f, " netns={pod}")?,
        }
        if self.without_prev_result {
            f.write_str(" prev=no")?;
        }
        if self.current_config {
            f.write_str(" config=now")?;
        }
        match self.kill_after {
            Some(delay) => write!(f, " kill={delay}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Call(by, verb, target, options) => {
                let verb = verb.command().to_lowercase();
                write!(f, "{} {verb} {target}{options}", word(*by))
            }
            Action::Gc(by, network, None) => write!(f, "{} gc {network}", word(*by)),
            Action::Gc(by, network, Some(pod)) => {
                write!(f, "{} gc {network} without={pod}", word(*by))
            }
            Action::Status(by, network) => write!(f, "{} status {network}", word(*by)),
            Action::Cli(words) => write!(f, "cli {words}"),
            Action::Config {
                network,
                key,
                value,
            } => write!(f, "config {network} {key}={value}"),
            Action::End(pod) => write!(f, "end {pod}"),
            Action::Reboot => f.write_str("reboot"),
            Action::Node(command) => write!(f, "node {command}"),
        }
    }
}

impl FromStr for Action {
    type Err = String;

    fn from_str(line: &str) -> Result<Action, String> {
        let wrong = || format!("not an action: {line:?}");
        let (first, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        let by = match first {
            "gangplank" => Implementation::Gangplank,
            "go" => Implementation::Go,
            "cli" => return Ok(Action::Cli(rest.to_owned())),
            "end" => return Ok(Action::End(rest.to_owned())),
            "reboot" => return Ok(Action::Reboot),
            "node" => return Ok(Action::Node(rest.to_owned())),
            "config" => {
                let (network, pair) = rest.split_once(' ').ok_or_else(wrong)?;
                let (key, value) = pair.split_once('=').ok_or_else(wrong)?;
                return Ok(Action::Config {
                    network: network.to_owned(),
                    key: key.to_owned(),
                    value: value.to_owned(),
                });
            }
            _ => return Err(wrong()),
        };
        let words: Vec<&str> = rest.split_whitespace().collect();
        let verb = match words.as_slice() {
            ["gc", network] => return Ok(Action::Gc(by, (*network).to_owned(), None)),
            ["gc", network, option] => {
                let pod = option.strip_prefix("without=").ok_or_else(wrong)?;
                return Ok(Action::Gc(by, (*network).to_owned(), Some(pod.to_owned())));
            }
            ["status", network] => return Ok(Action::Status(by, (*network).to_owned())),
            ["add", ..] => Verb::Add,
            ["del", ..] => Verb::Del,
            ["check", ..] => Verb::Check,
            _ => return Err(wrong()),
        };
        let [_, pod, network, ifname, options @ ..] = words.as_slice() else {
            return Err(wrong());
        };
        let target = Target {
            pod: (*pod).to_owned(),
            network: (*network).to_owned(),
            ifname: (*ifname).to_owned(),
        };
        Ok(Action::Call(by, verb, target, Options::parse(options)?))
    }
}

impl Options {
    fn parse(words: &[&str]) -> Result<Options, String> {
        let mut options = Options::default();
        for word in words {
            match word.split_once('=') {
                Some(("netns", "none")) => options.netns = NetnsArgument::Unset,
                Some(("netns", "missing")) => options.netns = NetnsArgument::Missing,
                Some(("netns", pod)) => options.netns = NetnsArgument::Of(pod.to_owned()),
                Some(("prev", "no")) => options.without_prev_result = true,
                Some(("config", "now")) => options.current_config = true,
                Some(("kill", delay)) => {
                    let delay = delay.parse().map_err(|e| format!("{word}: {e}"))?;
                    options.kill_after = Some(delay);
                }
                _ => return Err(format!("not an option: {word:?}")),
            }
        }
        Ok(options)
    }
}

/// Parses one action per line; empty lines and those that begin with `#` are ignored.
pub fn parse_sequence(text: &str) -> Result<Vec<Action>, String> {
    let lines = text.lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::parse)
        .collect()
}

/// The text that [`parse_sequence`] reads.
pub fn print_sequence(actions: &[Action]) -> String {
    actions.iter().map(|action| format!("{action}\n")).collect()
}
