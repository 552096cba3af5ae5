//! The actions of a history. Each is one line of text, which is what a sequence file holds:
//!
//! ```text
//! ours add p0 gw eth0                  a plugin call: who, verb, container, network, interface
//! go del p0 gw eth0 netns=none         options follow: netns=none|missing|pN, prev=no, config=now, kill=MICROSECONDS
//! ours gc gw                           GC of a network; the valid attachments are those that live
//! ours gc gw without=p0                the same, but for a pod
//! ours status gw
//! cli reconcile                        our command line, with the node's directories
//! config gw bridge=br9                 changes a network's configuration; the next calls use it
//! end p0                               the pod's namespace goes without a DEL
//! reboot                               all pods, links and rules go; leases stay; another boot ID
//! node ip link set br0 down            a shell command on the node, by an administrator or another tool
//! ```
//!
//! A shell command may use `$p0_gw_eth0` for the attachment's interface on the host and `$p0_gw_eth0_ip` for its first
//! address. A command that fails is no error: an action must make sense in any order, because minimising removes actions.

use std::fmt;
use std::str::FromStr;

pub use crate::implementation::Implementation;

/// An attachment by the names that identify it: container, network and interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    pub pod: String,
    pub network: String,
    pub ifname: String,
}

/// The verbs that are about one attachment.
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
    /// A path at which there is nothing.
    Missing,
    /// The path of another pod's.
    Of(String),
}

/// How a call differs from the usual one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub netns: NetnsArgument,
    /// Leaves prevResult out.
    pub without_prev_result: bool,
    /// Uses the network's present configuration instead of the attachment's at its ADD.
    pub current_config: bool,
    /// Kills the plugin and its children after so many microseconds.
    pub kill_after: Option<u32>,
}

/// One step of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Call(Implementation, Verb, Target, Options),
    /// The pod's attachments are left out of the list of valid ones.
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
    /// Whether a plugin or program of ours acts; everybody else's actions are foreign.
    pub fn is_ours(&self) -> bool {
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
    /// How a plugin call differs from the usual one.
    pub fn options(&mut self) -> Option<&mut Options> {
        match self {
            Action::Call(_, _, _, options) => Some(options),
            _ => None,
        }
    }

    /// What is done, without names.
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

/// How the lines of a history call an implementation.
fn word(implementation: Implementation) -> &'static str {
    match implementation {
        Implementation::Gangplank => "ours",
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
            "ours" => Implementation::Gangplank,
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

/// The actions of a text, one a line; empty lines and those that begin with `#` are left out.
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
