//! The `flannel` plugin: completes a configuration with the subnet that flanneld leased for the node, and delegates to
//! another plugin: bridge in process, others from CNI_PATH.

mod config;
mod saved;
mod subnet_env;

use std::cell::OnceCell;
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::cni::conf::NetConf;
use crate::cni::environment::{DelTarget, Target};
use crate::cni::json::{KeyPaths, key_paths};
use crate::cni::request::Request;
use crate::cni::result::AddResult;
use crate::delegate::{Delegate, Role};
use crate::error::{Error, Failures};
use crate::plugins::bridge::Bridge;
use crate::plugins::flannel::config::{FlannelConfig, FlannelKeys};
use crate::plugins::flannel::saved::SavedConfs;
use crate::plugins::flannel::subnet_env::SubnetEnv;
use crate::plugins::plugin::Plugin;
use crate::undo::Undo;

/// A valid request for ADD, CHECK or STATUS.
pub struct Flannel {
    /// Of the plugin itself.
    conf: NetConf,
    cni_path: Vec<PathBuf>,
    args: String,
    own_netns_allowed: bool,
    config: FlannelConfig,
    /// The delegate of an ADD, which its undo uses.
    added: OnceCell<Delegated>,
}

/// A valid request for the delegate.
enum Delegated {
    Bridge(Box<Bridge>),
    Program(Delegate),
}

impl Plugin for Flannel {
    const KEYS: &'static [fn() -> KeyPaths] = &[key_paths::<FlannelKeys>];

    fn parse(request: &Request) -> Result<Flannel, Error> {
        let conf = NetConf::parse(request.conf.bytes.clone())?;
        Ok(Flannel {
            config: FlannelConfig::parse(&conf)?,
            conf,
            cni_path: request.cni_path.clone(),
            args: request.args.clone(),
            own_netns_allowed: request.own_netns_allowed,
            added: OnceCell::new(),
        })
    }

    fn add<'a>(&'a self, target: &'a Target, undo: &mut Undo<'a>) -> Result<AddResult, Error> {
        let env = SubnetEnv::read(self.config.subnet_file())?;
        let conf = self.config.delegated(&self.conf, Some(&env));
        let text = Value::Object(conf.clone()).to_string();
        let delegated = self.delegated(conf)?;
        let delegated = self.added.get_or_init(|| delegated);
        let saved = self.saved();
        let container = &target.attachment.container;
        let is_new = saved.read(container)?.is_none();
        if is_new {
            undo.push(move || self.saved().remove(container));
        }
        saved.write(container, &text)?;
        match delegated {
            Delegated::Bridge(bridge) => bridge.add(target, undo),
            Delegated::Program(delegate) => {
                let result = delegate.add(&target.attachment, Ok)?;
                undo.push(|| delegate.release(&target.attachment));
                Ok(result)
            }
        }
    }

    /// Needs neither subnetFile nor the saved configuration: names of resources are also in the configuration.
    fn del(request: &Request, target: &DelTarget) -> Result<(), Error> {
        let conf = &request.conf;
        let config = FlannelConfig::names_of(conf);
        let saved = SavedConfs::new(config.data_dir(), &conf.name);
        let container = &target.attachment.container;
        let found = saved.read(container)?;
        let mut delegated = found.unwrap_or_else(|| config.delegated(conf, None));
        copy_keys(conf, &mut delegated, |key| {
            key.eq_ignore_ascii_case("prevResult")
        });
        match type_of(&delegated).as_str() {
            "bridge" => Bridge::del(&request_of(request, delegated)?, target)?,
            plugin => {
                let conf = conf_of(delegated)?;
                let delegate = Delegate::new(Role::Interface, plugin, &conf, &request.cni_path);
                delegate.release(&target.attachment)?;
            }
        }
        saved.remove(container)
    }

    fn check(&self, target: &Target) -> Result<(), Error> {
        let mut conf = match self.saved().read(&target.attachment.container)? {
            Some(saved) => saved,
            None => {
                let env = SubnetEnv::read(self.config.subnet_file())?;
                self.config.delegated(&self.conf, Some(&env))
            }
        };
        copy_keys(&self.conf, &mut conf, |key| {
            key.eq_ignore_ascii_case("prevResult")
        });
        match self.delegated(conf)? {
            Delegated::Bridge(bridge) => bridge.check(target),
            Delegated::Program(delegate) => delegate.check(&target.attachment),
        }
    }

    fn gc(request: &Request) -> Result<(), Error> {
        let conf = &request.conf;
        let config = FlannelConfig::names_of(conf);
        let mut delegated = config.delegated(conf, None);
        copy_keys(conf, &mut delegated, |key| key.starts_with("cni.dev/"));
        let mut failures = Failures::default();
        failures.note(match type_of(&delegated).as_str() {
            "bridge" => request_of(request, delegated).and_then(|it| Bridge::gc(&it)),
            plugin => conf_of(delegated).and_then(|conf| {
                Delegate::new(Role::Interface, plugin, &conf, &request.cni_path).gc()
            }),
        });
        if let Some(valid) = failures.note(conf.valid_attachments()).flatten() {
            SavedConfs::new(config.data_dir(), &conf.name).gc(&valid, &mut failures);
        }
        failures.into_result()
    }

    fn status(&self) -> Result<(), Error> {
        let env = SubnetEnv::read(self.config.subnet_file()).map_err(Error::into_not_available)?;
        match self.delegated(self.config.delegated(&self.conf, Some(&env)))? {
            Delegated::Bridge(bridge) => bridge.status(),
            Delegated::Program(delegate) => delegate.status(),
        }
    }
}

impl Flannel {
    fn saved(&self) -> SavedConfs<'_> {
        SavedConfs::new(self.config.data_dir(), &self.conf.name)
    }

    /// Parses the configuration of the delegate.
    fn delegated(&self, conf: Map<String, Value>) -> Result<Delegated, Error> {
        let plugin = type_of(&conf);
        let request = Request {
            conf: conf_of(conf)?,
            cni_path: self.cni_path.clone(),
            args: self.args.clone(),
            own_netns_allowed: self.own_netns_allowed,
        };
        match plugin.as_str() {
            "bridge" => Ok(Delegated::Bridge(Box::new(Bridge::parse(&request)?))),
            plugin => {
                let delegate =
                    Delegate::new(Role::Interface, plugin, &request.conf, &request.cni_path);
                delegate.locate()?;
                Ok(Delegated::Program(delegate))
            }
        }
    }
}

/// The configuration with which a network's ADD calls bridge; `None` if it delegates to another plugin.
///
/// # Errors
/// If the configuration is invalid, or the subnet file cannot be read.
pub fn bridge_configuration(conf: &NetConf) -> Result<Option<Map<String, Value>>, Error> {
    let config = FlannelConfig::parse(conf)?;
    let env = SubnetEnv::read(config.subnet_file())?;
    let delegated = config.delegated(conf, Some(&env));
    Ok((type_of(&delegated) == "bridge").then_some(delegated))
}

fn type_of(conf: &Map<String, Value>) -> String {
    let plugin = conf.get("type").and_then(Value::as_str);
    plugin.unwrap_or_default().to_owned()
}

fn conf_of(conf: Map<String, Value>) -> Result<NetConf, Error> {
    NetConf::parse(Value::Object(conf).to_string().into_bytes())
}

/// The same request for bridge.
fn request_of(request: &Request, conf: Map<String, Value>) -> Result<Request, Error> {
    Ok(Request {
        conf: conf_of(conf)?,
        cni_path: request.cni_path.clone(),
        args: request.args.clone(),
        own_netns_allowed: request.own_netns_allowed,
    })
}

/// Copies what the runtime added to the configuration.
fn copy_keys(from: &NetConf, to: &mut Map<String, Value>, is_wanted: impl Fn(&str) -> bool) {
    let all: Map<String, Value> = serde_json::from_slice(&from.bytes).unwrap_or_default();
    to.extend(all.into_iter().filter(|(key, _)| is_wanted(key)));
}
