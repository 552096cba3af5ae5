//! The command line. Help, completions and the manual page are generated from it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::net::{Cidr, IfName};

/// The directory in which runtimes look for plugins by default.
const DEFAULT_BIN_DIR: &str = "/opt/cni/bin";

const AFTER_HELP: &str = "\
Exit status: 0 done, no findings; 1 failed; 2 invalid command line; 3 doctor has unresolved findings.

Called by the name of a plugin (bridge, host-local, static, loopback, portmap, firewall, tuning, bandwidth), with or
without a prefix such as cnv-, this program is that CNI plugin. Called as gangplank with CNI_COMMAND set, it is bridge.";

/// Container networking in one small binary: the CNI plugins bridge, host-local, static, loopback, portmap, firewall, tuning and bandwidth
#[derive(Debug, Parser)]
#[command(name = "gangplank", version, after_help = AFTER_HELP, max_term_width = 100, arg_required_else_help = true)]
pub struct CommandLine {
    #[command(subcommand)]
    pub command: Subcommands,
    /// Color the output: auto, always or never. NO_COLOR in the environment disables auto
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        hide_possible_values = true
    )]
    pub color: ColorChoice,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub enum Subcommands {
    /// Show each network's bridge, addresses, masquerading and pods, and the host ports that are mapped to pods
    Status(StatusArgs),
    /// Find problems of this node's pod networks, with cause, evidence and remedy
    Doctor(DoctorArgs),
    /// Restore what a firewall reload or a network manager removed from running pods
    Reconcile(ReconcileArgs),
    /// Set this node's routes to the pod ranges of other nodes from a list of nodes on stdin
    ///
    /// The list is the output of `kubectl get nodes -o json`, or lines `ADDRESS CIDR`. Only routes of protocol number 71
    /// are added, replaced and removed; all other routes stay unchanged.
    Routes(RoutesArgs),
    /// Print a CNI configuration for a subnet, or for a Kubernetes Node object on stdin
    Conf(ConfArgs),
    /// Install the plugins in a CNI bin directory; existing programs are kept as NAME.orig
    Install(InstallArgs),
    /// Remove the plugins from a CNI bin directory and restore NAME.orig
    Uninstall(InstallArgs),
    /// Print shell completions
    Completions { shell: Shell },
    /// Print the manual page in roff format
    Man,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// The directories that describe the networks of this node.
#[derive(Args, Clone, Debug)]
pub struct Paths {
    /// Directory of network configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub conf_dir: PathBuf,
    /// Directory in which runtimes cache the results of ADD; can be repeated. The second default is kubelet's
    #[arg(
        long,
        value_name = "DIR",
        default_values = ["/var/lib/cni/results", "/var/lib/cni/cache/results"]
    )]
    pub cache_dir: Vec<PathBuf>,
    /// Directory of leases, unless a configuration sets dataDir
    #[arg(long, value_name = "DIR", default_value = crate::ipam::config::DEFAULT_DATA_DIR)]
    pub data_dir: PathBuf,
}

#[derive(Args, Clone, Copy, Debug)]
pub struct OutputFormat {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Show only this network
    pub network: Option<String>,
    #[command(flatten)]
    pub format: OutputFormat,
    #[command(flatten)]
    pub paths: Paths,
}

#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Repair what is safe to repair
    #[arg(long)]
    pub fix: bool,
    #[command(flatten)]
    pub format: OutputFormat,
    /// Directories of plugins, separated by colons
    #[arg(long, value_name = "DIR:DIR", env = "CNI_PATH", default_value = DEFAULT_BIN_DIR)]
    pub cni_path: String,
    #[command(flatten)]
    pub paths: Paths,
}

#[derive(Args, Debug)]
pub struct ReconcileArgs {
    /// Reconcile only this network
    pub network: Option<String>,
    /// Print what would be restored, without changing anything
    #[arg(long, short = 'n')]
    pub dry_run: bool,
    #[command(flatten)]
    pub format: OutputFormat,
    #[command(flatten)]
    pub paths: Paths,
}

#[derive(Args, Debug)]
pub struct RoutesArgs {
    /// Print the changes, without making them
    #[arg(long, short = 'n')]
    pub dry_run: bool,
    #[command(flatten)]
    pub format: OutputFormat,
    /// Name of this node; by default the node with an address of this machine
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Metric of the routes; 0 is the kernel's default
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub metric: u32,
}

#[derive(Args, Debug)]
pub struct ConfArgs {
    /// Subnets of the pods, at most one of each family; without any, a Node object is read from stdin
    #[arg(value_name = "SUBNET")]
    pub subnets: Vec<Cidr>,
    /// Name of the network
    #[arg(long, default_value = "pods")]
    pub name: String,
    /// Name of the bridge
    #[arg(long, default_value = "cni0")]
    pub bridge: IfName,
    /// MTU of the bridge and the pods in bytes; by default the uplink's
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<u32>,
    /// Subtract the overhead of a tunnel from the uplink's MTU
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pub overhead: u32,
    /// Do not masquerade
    #[arg(long)]
    pub no_masquerade: bool,
    /// Do not masquerade packets to this destination, such as the pod range of the cluster; can be repeated
    #[arg(long, value_name = "CIDR")]
    pub non_masquerade: Vec<Cidr>,
    /// Add the plugin portmap, for host ports
    #[arg(long)]
    pub portmap: bool,
    /// Write to this file atomically instead of printing
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// CNI version of the configuration. From 1.1.0 on runtimes call STATUS
    #[arg(long, value_name = "VERSION", default_value = "1.0.0")]
    pub cni_version: String,
    /// Directories of plugins, separated by colons; installed plugins are checked for support of the CNI version
    #[arg(long, value_name = "DIR:DIR", env = "CNI_PATH", default_value = DEFAULT_BIN_DIR)]
    pub cni_path: String,
}

#[derive(Args, Debug)]
pub struct InstallArgs {
    /// CNI bin directory
    #[arg(value_name = "DIR", default_value = DEFAULT_BIN_DIR)]
    pub directory: PathBuf,
}
