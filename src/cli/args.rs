//! The command line: what `--help`, the completions and the man page say too.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::net::Cidr;

/// What `--help` says below the commands.
const AFTER: &str = "\
Exit status: 0 done, nothing found; 1 it failed; 2 the command line was not understood; 3 doctor found something that
still stands.

Called as bridge, host-local or loopback, also with a prefix as in cnv-bridge, it is that CNI plugin. Called as gangplank with
CNI_COMMAND set, it is bridge.";

/// Container networking in one small binary: the CNI plugins bridge, host-local and loopback.
#[derive(Debug, Parser)]
#[command(name = "gangplank", version, after_help = AFTER, max_term_width = 100, arg_required_else_help = true)]
pub struct CommandLine {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// When to colour what is printed; the variable NO_COLOR means never.
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        hide_possible_values = true
    )]
    pub color: Colour,
}

/// When to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum Colour {
    Auto,
    Always,
    Never,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show each network's bridge, addresses, masquerading and pods.
    Status(Status),
    /// Look for what is wrong with this node's pod networks: cause, evidence, remedy.
    Doctor(Doctor),
    /// Put back what a firewall reload or a network manager removed from live pods.
    Reconcile(Reconcile),
    /// Make this node's routes to the other nodes' pod ranges match a list of nodes on stdin.
    ///
    /// The list is `kubectl get nodes -o json`, or lines `ADDRESS CIDR`. Routes are added, replaced and removed by their
    /// route protocol number 71; no other route is touched.
    Routes(Routes),
    /// Print a CNI configuration for a subnet, or for a Kubernetes Node object on stdin.
    Conf(Conf),
    /// Put the plugins into a CNI bin directory; what was there is kept as NAME.orig.
    Install(Install),
    /// Take the plugins out of a CNI bin directory and bring NAME.orig back.
    Uninstall(Install),
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the manual page, in roff.
    Man,
}

/// The shells that completions are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Where this node keeps what describes its networks.
#[derive(Args, Clone, Debug)]
pub struct Paths {
    /// The directory of network configurations.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub conf_dir: PathBuf,
    /// The directory in which runtimes keep the results of ADD; can be repeated. The second one is kubelet's.
    #[arg(
        long,
        value_name = "DIR",
        default_values = ["/var/lib/cni/results", "/var/lib/cni/cache/results"]
    )]
    pub cache_dir: Vec<PathBuf>,
    /// The directory of leases, unless a configuration has a dataDir.
    #[arg(long, value_name = "DIR", default_value = crate::ipam::config::DEFAULT_DATA_DIR)]
    pub data_dir: PathBuf,
}

/// Of `status`.
#[derive(Args, Debug)]
pub struct Status {
    /// Only this network.
    pub network: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Where to look.
    #[command(flatten)]
    pub paths: Paths,
}

/// Of `doctor`.
#[derive(Args, Debug)]
pub struct Doctor {
    /// Repair what is safe to repair.
    #[arg(long)]
    pub fix: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Where plugins are, separated by colons.
    #[arg(long, value_name = "DIR:DIR", env = "CNI_PATH", default_value = super::DEFAULT_DIRECTORY)]
    pub cni_path: String,
    /// Where to look.
    #[command(flatten)]
    pub paths: Paths,
}

/// Of `reconcile`.
#[derive(Args, Debug)]
pub struct Reconcile {
    /// Only this network.
    pub network: Option<String>,
    /// Only say what would be done.
    #[arg(long, short = 'n')]
    pub dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Where to look.
    #[command(flatten)]
    pub paths: Paths,
}

/// Of `routes`.
#[derive(Args, Debug)]
pub struct Routes {
    /// Only show what would be done.
    #[arg(long, short = 'n')]
    pub dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// The name of this node; otherwise it is the one with an address of this machine.
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// The metric of the routes; the kernel's default when 0.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub metric: u32,
}

/// Of `conf`.
#[derive(Args, Debug)]
pub struct Conf {
    /// The pods' subnets, at most one of each family; without any, a Node object is read from stdin.
    #[arg(value_name = "SUBNET")]
    pub subnets: Vec<Cidr>,
    /// The network's name.
    #[arg(long, default_value = "pods")]
    pub name: String,
    /// The bridge's name.
    #[arg(long, default_value = "cni0")]
    pub bridge: String,
    /// MTU of the bridge and the pods in bytes; otherwise that of the uplink.
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<u32>,
    /// Bytes that a tunnel on the way takes from the uplink's MTU.
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pub overhead: u32,
    /// Do not masquerade.
    #[arg(long)]
    pub no_masquerade: bool,
    /// A destination for which pods keep their address, such as the range of all nodes' pods; can be repeated.
    #[arg(long, value_name = "CIDR")]
    pub non_masquerade: Vec<Cidr>,
    /// Add the plugin portmap, for host ports.
    #[arg(long)]
    pub portmap: bool,
    /// Write to this file, whole or not at all, instead of printing.
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// The CNI version of the configuration. From 1.1.0 on runtimes poll the plugins with STATUS.
    #[arg(long, value_name = "VERSION", default_value = "1.0.0")]
    pub cni_version: String,
    /// Where plugins are, separated by colons: those that are there are asked whether they support the CNI version.
    #[arg(long, value_name = "DIR:DIR", env = "CNI_PATH", default_value = super::DEFAULT_DIRECTORY)]
    pub cni_path: String,
}

/// Of `install` and `uninstall`.
#[derive(Args, Debug)]
pub struct Install {
    /// The directory.
    #[arg(value_name = "DIR", default_value = super::DEFAULT_DIRECTORY)]
    pub directory: PathBuf,
}
