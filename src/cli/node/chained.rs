//! The plugins portmap and firewall of running containers. Their configuration and the mapped ports are only in the
//! runtime's cache. CHECK finds what other programs removed, and ADD restores it.

use std::fmt;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::cli::node::{CachedResult, Node};
use crate::cli::plugin_list::PluginList;
use crate::cni::conf::NetConf;
use crate::cni::environment::{DelTarget, Target};
use crate::cni::names::{Attachment, NetworkName};
use crate::cni::request::Request;
use crate::error::Error;
use crate::kernel::netlink::{Address, Netlink};
use crate::kernel::netns::{Netns, OwnNetns};
use crate::net::Cidr;
use crate::plugins;
use crate::plugins::firewall::FirewallPlugin;
use crate::plugins::plugin::Plugin;
use crate::plugins::portmap::Portmap;
use crate::undo::Undo;

/// The plugins whose entries are restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainedPlugin {
    Firewall,
    Portmap,
}

impl ChainedPlugin {
    pub const ALL: [ChainedPlugin; 2] = [ChainedPlugin::Firewall, ChainedPlugin::Portmap];

    /// The plugin that a configuration's `type` names.
    fn named(plugin_type: &str) -> Option<ChainedPlugin> {
        let name = plugins::named(plugin_type)?.name();
        ChainedPlugin::ALL.into_iter().find(|it| it.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            ChainedPlugin::Firewall => "firewall",
            ChainedPlugin::Portmap => "portmap",
        }
    }

    fn check(self, call: &ChainedCall) -> Result<(), Error> {
        fn check<P: Plugin>(call: &ChainedCall) -> Result<(), Error> {
            P::parse(&call.request)?.check(&call.target)
        }
        match self {
            ChainedPlugin::Firewall => check::<FirewallPlugin>(call),
            ChainedPlugin::Portmap => check::<Portmap>(call),
        }
    }

    /// Undoes nothing after a failure: the other entries of a running container are still needed.
    fn add(self, call: &ChainedCall) -> Result<(), Error> {
        fn add<P: Plugin>(call: &ChainedCall) -> Result<(), Error> {
            let plugin = P::parse(&call.request)?;
            let added = plugin.add(&call.target, &mut Undo::default());
            added.map(drop)
        }
        match self {
            ChainedPlugin::Firewall => add::<FirewallPlugin>(call),
            ChainedPlugin::Portmap => add::<Portmap>(call),
        }
    }

    /// Removes all entries of an attachment, like a DEL without a namespace and prevResult.
    ///
    /// # Errors
    /// If something could not be removed.
    pub fn del(self, network: &NetworkName, attachment: &Attachment) -> Result<(), Error> {
        let conf = json!({ "cniVersion": "1.0.0", "name": network.as_str(), "type": self.name() });
        let request = request(conf.to_string().into_bytes())?;
        let target = DelTarget {
            attachment: attachment.clone(),
            netns: None,
        };
        match self {
            ChainedPlugin::Firewall => FirewallPlugin::del(&request, &target),
            ChainedPlugin::Portmap => Portmap::del(&request, &target),
        }
    }
}

fn request(conf: Vec<u8>) -> Result<Request, Error> {
    Ok(Request {
        conf: NetConf::parse(conf)?,
        cni_path: Vec::new(),
        args: String::new(),
        own_netns_allowed: false,
    })
}

/// The call of a plugin for a running container, as its runtime made it.
#[derive(Debug)]
pub struct ChainedCall {
    pub plugin: ChainedPlugin,
    pub target: Target,
    request: Request,
    /// The cache entry, which a DEL removes.
    file: PathBuf,
    addresses: Vec<Cidr>,
}

impl fmt::Display for ChainedCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let attachment = &self.target.attachment;
        match self.plugin {
            ChainedPlugin::Firewall => write!(f, "firewall rules of {attachment}"),
            ChainedPlugin::Portmap => write!(f, "port mappings of {attachment}"),
        }
    }
}

impl ChainedCall {
    /// The calls of a cached ADD whose container is running.
    fn all_of(cached: &CachedResult) -> Vec<ChainedCall> {
        let list = cached.configuration();
        let list = list.and_then(|content| PluginList::parse(&content).ok());
        let plugins = list.into_iter().flat_map(|list| list.plugins);
        let calls = plugins.filter_map(|plugin| {
            let named = ChainedPlugin::named(&plugin.plugin_type)?;
            let conf = derive(plugin.request?, cached)?;
            let target = Target {
                attachment: cached.attachment.clone(),
                netns: cached.netns()?.to_owned(),
            };
            Some(ChainedCall {
                plugin: named,
                target,
                request: request(conf.to_string().into_bytes()).ok()?,
                file: cached.file.clone(),
                addresses: cached.addresses(),
            })
        });
        calls.filter(ChainedCall::is_running).collect()
    }

    pub fn network(&self) -> &NetworkName {
        &self.request.conf.name
    }

    /// What the entries lack; `None` if they are complete or the container is not running.
    pub fn difference(&self) -> Option<Error> {
        let difference = self.plugin.check(self).err();
        difference.filter(|_| self.is_running())
    }

    /// Restores the entries.
    ///
    /// # Errors
    /// If a step fails.
    pub fn restore(&self) -> Result<(), Error> {
        self.plugin.add(self)?;
        // A DEL may have removed them before, and has ended since.
        match self.is_running() {
            true => Ok(()),
            false => self.plugin.del(self.network(), &self.target.attachment),
        }
    }

    /// Whether the cache entry exists and the network namespace has one of the addresses. Its path alone proves nothing:
    /// a process ID in it may have been reassigned.
    fn is_running(&self) -> bool {
        let addresses = || {
            let netns = Netns::open(&self.target.netns, OwnNetns::Refused).ok()?;
            Netlink::open_in(&netns).ok()?.all_addresses().ok()
        };
        let is_cached = |it: &Address| self.addresses.contains(&it.cidr);
        self.file.exists() && addresses().is_some_and(|all| all.iter().any(is_cached))
    }
}

impl Node {
    /// The plugins of running containers whose entries are not as ADD left them, with the first difference. Compared on
    /// first use.
    pub fn differing_calls(&self) -> &[(ChainedCall, Error)] {
        self.differing_calls.get_or_init(|| self.compare_calls())
    }

    fn compare_calls(&self) -> Vec<(ChainedCall, Error)> {
        let calls = self.cache.iter().flat_map(ChainedCall::all_of);
        let differing = calls
            .filter(|call| !self.has_go_rules(call))
            .filter_map(|call| call.difference().map(|difference| (call, difference)));
        let mut differing: Vec<(ChainedCall, Error)> = differing.collect();
        differing.sort_by(|(one, _), (other, _)| one.file.cmp(&other.file));
        differing
    }

    /// Whether the Go plugin has mapped the ports in its table, which CHECK does not know.
    fn has_go_rules(&self, call: &ChainedCall) -> bool {
        let mut ports = self.mapped_ports.iter().filter(|it| it.is_go_rule());
        let attachment = &call.target.attachment;
        call.plugin == ChainedPlugin::Portmap
            && ports.any(|port| port.is_of(call.network(), attachment))
    }
}

/// What a runtime passes to a chained plugin (CNI spec 1.1, section 3, "Deriving request configuration").
fn derive(mut request: Map<String, Value>, cached: &CachedResult) -> Option<Value> {
    let capabilities = request.remove("capabilities");
    let capabilities = capabilities.as_ref().and_then(Value::as_object);
    let enabled = capabilities.into_iter().flatten();
    let enabled = enabled.filter(|(_, is_enabled)| **is_enabled == Value::Bool(true));
    let runtime: Map<String, Value> = enabled
        .filter_map(|(name, _)| Some((name.clone(), cached.capability(name)?.clone())))
        .collect();
    if !runtime.is_empty() {
        request.insert("runtimeConfig".to_owned(), Value::Object(runtime));
    }
    request.insert("prevResult".to_owned(), cached.document()?.clone());
    Some(Value::Object(request))
}
