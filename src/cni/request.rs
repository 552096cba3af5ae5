//! The environment and configuration of one call.

use std::path::PathBuf;

use crate::cni::conf::NetConf;

/// The parameters of every operation.
#[derive(Debug)]
pub struct Request {
    pub conf: NetConf,
    /// CNI_PATH, split. An empty element is the current directory.
    pub cni_path: Vec<PathBuf>,
    /// CNI_ARGS, unparsed; see [`crate::cni::args::Args`].
    pub args: String,
    /// CNI_NETNS_OVERRIDE: CNI_NETNS may be the plugin's own namespace.
    pub own_netns_allowed: bool,
}

impl Request {
    /// A request with an empty environment.
    pub fn of_configuration(conf: NetConf) -> Request {
        Request {
            conf,
            cni_path: Vec::new(),
            args: String::new(),
            own_netns_allowed: false,
        }
    }
}
