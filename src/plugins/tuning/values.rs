//! Sysctls and link settings of a container, and their previous values.

use std::io::ErrorKind;

use crate::error::{Error, Failures};
use crate::kernel::netlink::{Link, LinkSetting, Netlink, NetlinkError};
use crate::kernel::netns::{Netns, OwnNetns};
use crate::kernel::sysctl::NetSysctl;
use crate::link::{Context, failed, look_up, namespace};
use crate::net::IfName;

/// IPV6_MIN_MTU (linux/ipv6.h).
const IPV6_MIN_MTU: u32 = 1280;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Values {
    pub sysctls: Vec<(NetSysctl, String)>,
    pub settings: Vec<LinkSetting>,
}

/// A container whose sysctls and interface are tuned.
pub struct Container {
    pub netns: Netns,
    netlink: Netlink,
    interface: IfName,
}

impl Container {
    /// # Errors
    /// If the namespace cannot be opened.
    pub fn open(path: &str, own: OwnNetns, interface: &IfName) -> Result<Container, Error> {
        Container::of(namespace::open(path, own)?, interface)
    }

    /// # Errors
    /// If no socket can be opened in the namespace.
    pub fn of(netns: Netns, interface: &IfName) -> Result<Container, Error> {
        Ok(Container {
            netlink: namespace::netlink(&netns)?,
            netns,
            interface: interface.clone(),
        })
    }

    fn link(&self) -> Result<Option<Link>, Error> {
        look_up(&self.netlink, &self.interface)
    }

    /// The interface if values of it are wanted.
    fn link_for(&self, wanted: &Values) -> Result<Option<Link>, Error> {
        if wanted.settings.is_empty() {
            return Ok(None);
        }
        let missing = || {
            let path = self.netns.path().display();
            let msg = format!("there is no interface {} in {path}", self.interface);
            Error::failed(msg).details("a plugin that creates it must precede in the chain")
        };
        self.link()?.map(Some).ok_or_else(missing)
    }

    /// Runs a closure in the namespace.
    fn inside<T>(&self, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        let done = self.netns.inside(work);
        done.map_err(|cause| namespace::error(&self.netns.path().to_string_lossy(), cause))?
    }

    /// The current values of the wanted sysctls and settings. A sysctl that cannot be read is omitted.
    ///
    /// # Errors
    /// If the kernel lacks a sysctl or there is no interface.
    pub fn current(&self, wanted: &Values) -> Result<Values, Error> {
        let link = self.link_for(wanted)?;
        let settings = wanted.settings.iter();
        let settings = settings.filter_map(|wanted| link.as_ref()?.current(*wanted));
        Ok(Values {
            settings: settings.collect(),
            sysctls: self.current_sysctls(wanted)?,
        })
    }

    fn current_sysctls(&self, wanted: &Values) -> Result<Vec<(NetSysctl, String)>, Error> {
        let read = |(sysctl, _): &(NetSysctl, String)| match sysctl.read() {
            Ok(value) => Some(Ok((sysctl.clone(), value))),
            // For example net/ipv4/route/flush, whose mode is 0200.
            Err(cause) if cause.kind() == ErrorKind::PermissionDenied => None,
            Err(cause) => Some(Err(self.sysctl_failed("read", sysctl, cause))),
        };
        self.inside(|| wanted.sysctls.iter().filter_map(read).collect())
    }

    /// The kernel removes the IPv6 addresses and routes of a link whose MTU becomes too small (`addrconf_notify`,
    /// net/ipv6/addrconf.c).
    ///
    /// # Errors
    /// If the link has such addresses and is to have a small MTU.
    pub fn reject_loss_of_ipv6(&self, wanted: &Values) -> Result<(), Error> {
        let is_small = |setting: &LinkSetting| matches!(setting, LinkSetting::Mtu(..IPV6_MIN_MTU));
        let Some(setting) = wanted.settings.iter().find(|it| is_small(it)) else {
            return Ok(());
        };
        let Some(link) = self.link_for(wanted)? else {
            return Ok(());
        };
        let addresses = self.netlink.addresses(link.index);
        let addresses = addresses.context("list the addresses of", &self.interface)?;
        let mut addresses = addresses.iter().map(|address| address.cidr);
        match addresses.find(|it| it.address().is_ipv6() && !it.is_ipv6_link_local()) {
            None => Ok(()),
            Some(address) => {
                let name = &self.interface;
                let msg =
                    format!("cannot set {setting} of {name}, which has the address {address}");
                Err(Error::failed(msg).details(format!(
                    "the kernel removes IPv6 addresses from links with an MTU below {IPV6_MIN_MTU}"
                )))
            }
        }
    }

    /// Sets the values, up to the first failure.
    ///
    /// # Errors
    /// If the kernel refuses a value.
    pub fn apply(&self, values: &Values) -> Result<(), Error> {
        self.inside(|| {
            let mut sysctls = values.sysctls.iter();
            sysctls.try_for_each(|(sysctl, value)| self.set_sysctl(sysctl, value))
        })?;
        let Some(link) = self.link_for(values)? else {
            return Ok(());
        };
        let mut settings = values.settings.iter();
        settings.try_for_each(|setting| self.configure(&link, *setting))
    }

    /// Sets the values in reverse order, also after a failure. What does not exist any more is ignored.
    pub fn restore(&self, values: &Values, failures: &mut Failures) {
        if let Some(link) = failures.note(self.link()).flatten() {
            for setting in values.settings.iter().rev() {
                failures.note(self.configure(&link, *setting));
            }
        }
        failures.note(self.inside(|| {
            let mut failures = Failures::default();
            for (sysctl, value) in values.sysctls.iter().rev() {
                if sysctl.read().is_ok() {
                    failures.note(self.set_sysctl(sysctl, value));
                }
            }
            failures.into_result()
        }));
    }

    /// Compares the current values with the wanted ones.
    ///
    /// # Errors
    /// The first difference.
    pub fn check(&self, wanted: &Values) -> Result<(), Error> {
        let differs = |what: &str, observed: &str| {
            let path = self.netns.path().display();
            let msg = format!("Error: Tuning {what} is not in effect in {path}: it is {observed}");
            Err(Error::failed(msg))
        };
        for (sysctl, value) in &self.current_sysctls(wanted)? {
            let mut wanted = wanted.sysctls.iter();
            let wanted = wanted
                .find(|(it, _)| it == sysctl)
                .map_or("", |(_, value)| value);
            // The kernel separates the numbers of a list with tabs (`proc_dointvec`, kernel/sysctl.c).
            if !value.split_whitespace().eq(wanted.split_whitespace()) {
                let what = format!("sysctl {} = {wanted}", sysctl.path());
                return differs(&what, &format!("{value:?}"));
            }
        }
        let Some(link) = self.link_for(wanted)? else {
            return Ok(());
        };
        for setting in &wanted.settings {
            let current = link.current(*setting);
            if current != Some(*setting) {
                let observed = current.map_or("unknown".to_owned(), |it| it.to_string());
                return differs(&format!("{setting} of {}", self.interface), &observed);
            }
        }
        Ok(())
    }

    fn configure(&self, link: &Link, setting: LinkSetting) -> Result<(), Error> {
        let configured = self.netlink.configure(link.index, setting);
        configured.map_err(|cause| {
            let error = failed(&format!("set {setting} of"), &self.interface, cause);
            match cause {
                NetlinkError::Refused(_) => error.details("the driver does not support the value"),
                _ => error,
            }
        })
    }

    fn set_sysctl(&self, sysctl: &NetSysctl, value: &str) -> Result<(), Error> {
        let set = sysctl.set(value);
        set.map_err(|cause| self.sysctl_failed(&format!("write {value:?} to"), sysctl, cause))
    }

    fn sysctl_failed(&self, operation: &str, sysctl: &NetSysctl, cause: std::io::Error) -> Error {
        let container = self.netns.path().display();
        let path = sysctl.path();
        let error = Error::failed(format!(
            "cannot {operation} sysctl {path} in {container}: {cause}"
        ));
        match cause.kind() {
            ErrorKind::NotFound => {
                error.details("this kernel or network namespace has no such sysctl")
            }
            ErrorKind::InvalidInput => error.details("the kernel does not accept the value"),
            _ => error,
        }
    }
}
