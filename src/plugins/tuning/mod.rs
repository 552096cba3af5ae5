//! The `tuning` plugin: sets sysctls of a container and properties of its interface.
//!
//! The values from before an ADD are saved in a [`backup`] file and restored by DEL. If an ADD fails, they are restored at
//! once.

mod allowlist;
mod backup;
pub mod config;
mod values;

use std::path::PathBuf;
use std::rc::Rc;

use crate::cni::args::Args;
use crate::cni::environment::{DelTarget, Target};
use crate::cni::json::{KeyPaths, key_paths};
use crate::cni::names::NetworkName;
use crate::cni::request::Request;
use crate::cni::result::AddResult;
use crate::error::{Code, Error, Failures};
use crate::kernel::netns::OwnNetns;
use crate::kernel::{files, log};
use crate::link::namespace;
use crate::net::IfName;
use crate::plugins::plugin::Plugin;
use crate::plugins::tuning::backup::{Backup, Saved};
use crate::plugins::tuning::config::{LinkKeys, TuningConfig, TuningKeys, data_dir};
use crate::plugins::tuning::values::{Container, Values};
use crate::undo::Undo;

/// A valid request for ADD, CHECK or STATUS.
pub struct Tuning {
    network: NetworkName,
    data_dir: PathBuf,
    config: TuningConfig,
    previous: Option<AddResult>,
    own_netns: OwnNetns,
}

impl Plugin for Tuning {
    const KEYS: &'static [fn() -> KeyPaths] = &[key_paths::<TuningKeys>, key_paths::<LinkKeys>];

    fn parse(request: &Request) -> Result<Tuning, Error> {
        let conf = &request.conf;
        Ok(Tuning {
            network: conf.name.clone(),
            data_dir: data_dir(&conf.root())?,
            config: TuningConfig::parse(conf, &Args::parse(&request.args)?)?,
            previous: conf.prev_result()?,
            own_netns: OwnNetns::allowed(request.own_netns_allowed),
        })
    }

    fn add<'a>(&'a self, target: &'a Target, undo: &mut Undo<'a>) -> Result<AddResult, Error> {
        let interface = &target.attachment.interface;
        let mut result = self.previous()?.clone();
        allowlist::check(self.config.sysctl_names())?;
        let wanted = self.wanted(interface)?;
        let container = Container::open(&target.netns, self.own_netns, interface)?;
        if wanted != Values::default() {
            let backup = Backup::of(&self.data_dir, &target.attachment);
            log::timed_span("tuning", || self.apply(&wanted, container, backup, undo))?;
        }
        let tuned = result.interfaces.iter_mut();
        for tuned in tuned.filter(|it| it.name == interface.as_str()) {
            if let Some(mac) = &self.config.mac {
                tuned.mac.clone_from(mac);
            }
            tuned.mtu = self.config.mtu.or(tuned.mtu);
        }
        Ok(result)
    }

    /// Restores the saved values and removes the backup file. If that fails, the file is kept and DEL succeeds: otherwise
    /// the runtime would not call the other plugins of the chain.
    fn del(request: &Request, target: &DelTarget) -> Result<(), Error> {
        let directory = data_dir(&request.conf.root())?;
        let backup = Backup::of(&directory, &target.attachment);
        let own_netns = OwnNetns::allowed(request.own_netns_allowed);
        let restored = log::timed_span("tuning", || restore(&backup, target, own_netns));
        match restored.and_then(|()| backup.remove()) {
            Err(error) if error.code != Code::OWN_NETNS => {
                log::warn(&error.to_string());
                Ok(())
            }
            outcome => outcome,
        }
    }

    fn check(&self, target: &Target) -> Result<(), Error> {
        self.previous()?;
        let interface = &target.attachment.interface;
        let wanted = self.wanted(interface)?;
        Container::open(&target.netns, self.own_netns, interface)?.check(&wanted)
    }

    fn gc(request: &Request) -> Result<(), Error> {
        let conf = &request.conf;
        match conf.valid_attachments()? {
            Some(valid) => backup::gc(&data_dir(&conf.root())?, &conf.name, &valid),
            None => Ok(()),
        }
    }

    fn status(&self) -> Result<(), Error> {
        if self.config.is_empty() {
            return Ok(());
        }
        let allowed = allowlist::check(self.config.sysctl_names());
        let ready = allowed.and_then(|()| {
            let writable = files::check_writable(&self.data_dir);
            let msg = |cause| format!("dataDir: files cannot be created in {cause}");
            writable.map_err(|cause| Error::failed(msg(cause)))
        });
        ready.map_err(Error::into_not_available)
    }
}

/// Restores the saved values, as far as namespace and interface still exist. An invalid file has none.
fn restore(backup: &Backup, target: &DelTarget, own_netns: OwnNetns) -> Result<(), Error> {
    let netns = namespace::open_existing(target.netns.as_deref(), own_netns)?;
    let saved = backup.read().unwrap_or_else(|invalid| {
        log::warn(&invalid.to_string());
        None
    });
    let Some((netns, saved)) = netns.zip(saved) else {
        return Ok(());
    };
    let container = Container::of(netns, &target.attachment.interface)?;
    let mut failures = Failures::default();
    container.restore(&saved.values(), &mut failures);
    failures.into_result()
}

impl Tuning {
    fn previous(&self) -> Result<&AddResult, Error> {
        let missing = "tuning: Required prevResult missing";
        let error = || {
            Error::failed(missing)
                .details("a plugin that creates the interface must precede in the chain")
        };
        self.previous.as_ref().ok_or_else(error)
    }

    fn wanted(&self, interface: &IfName) -> Result<Values, Error> {
        Ok(Values {
            sysctls: self.config.sysctls(interface)?,
            settings: self.config.settings.clone(),
        })
    }

    /// Saves the current values, then sets the wanted ones.
    fn apply<'a>(
        &'a self,
        wanted: &Values,
        container: Container,
        backup: Backup,
        undo: &mut Undo<'a>,
    ) -> Result<(), Error> {
        container.reject_loss_of_ipv6(wanted)?;
        let current = container.current(wanted)?;
        // An invalid file cannot be restored, so it is replaced.
        let earlier = backup.read().ok().flatten();
        let saved = Saved::new(&current, &self.network);
        backup.write(&earlier.clone().unwrap_or_default().or(saved))?;
        let container = Rc::new(container);
        let tuned = container.clone();
        undo.push(move || {
            let mut failures = Failures::default();
            tuned.restore(&current, &mut failures);
            failures.note(match &earlier {
                Some(earlier) => backup.write(earlier),
                None => backup.remove(),
            });
            failures.into_result()
        });
        container.apply(wanted)
    }
}
