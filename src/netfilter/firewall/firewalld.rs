//! The backend firewalld: binds the addresses of containers to a zone, over D-Bus. The bindings belong to firewalld's
//! runtime configuration, which a reload discards.

use std::net::{IpAddr, Ipv4Addr};

use crate::error::{Code, Error, Failures};
use crate::kernel::dbus::{BUS, Bus, DbusError, Interface, Value};
use crate::net::Cidr;

const ZONES: Interface = Interface {
    destination: "org.fedoraproject.FirewallD1",
    path: "/org/fedoraproject/FirewallD1",
    name: "org.fedoraproject.FirewallD1.zone",
};

/// A connection to firewalld.
pub struct Firewalld(Bus);

/// Whether firewalld is running. An error counts as no, as with the Go plugin.
pub fn is_running() -> bool {
    Firewalld::running().is_some()
}

/// Binds addresses to a zone.
///
/// # Errors
/// If firewalld refuses one, or if it is bound to another zone; the error names it.
pub fn install(zone: &str, addresses: &[IpAddr]) -> Result<(), Error> {
    let mut firewalld = Firewalld::connect()?;
    let mut add = |address: &IpAddr| firewalld.add(zone, *address);
    addresses.iter().try_for_each(&mut add)
}

/// Removes addresses from a zone, if firewalld is running. Those of other zones stay there.
///
/// # Errors
/// If one remains in the zone, after the others were removed.
pub fn remove(zone: &str, addresses: &[IpAddr]) -> Result<(), Error> {
    let mut failures = Failures::default();
    if let Some(mut firewalld) = Firewalld::running().filter(|_| !addresses.is_empty()) {
        for address in addresses {
            failures.note(firewalld.remove(zone, *address));
        }
    }
    failures.into_result()
}

/// # Errors
/// If an address is not bound to the zone.
pub fn check(zone: &str, addresses: &[IpAddr]) -> Result<(), Error> {
    let mut firewalld = Firewalld::connect()?;
    for address in addresses {
        let contains = firewalld.contains(zone, *address);
        if !contains.map_err(|cause| failed("look for", (*address, zone), &cause))? {
            let what = format!("check: {address} is not in the firewalld zone {zone}");
            let why = "a reload of firewalld removes it: run DEL, then ADD again";
            return Err(Error::failed(what).details(why));
        }
    }
    Ok(())
}

/// # Errors
/// If firewalld does not answer, or has no such zone.
pub fn status(zone: &str) -> Result<(), Error> {
    let contains = Firewalld::connect()?.contains(zone, Ipv4Addr::UNSPECIFIED.into());
    contains.map(drop).map_err(|cause| {
        let what = format!("firewall: cannot use the firewalld zone {zone}: {cause}");
        Error::new(code_of(&cause), what)
    })
}

impl Firewalld {
    fn connect() -> Result<Firewalld, Error> {
        let bus = Bus::system().map_err(|cause| {
            let what = format!("firewall: cannot use firewalld: {cause}");
            let error = Error::new(code_of(&cause), what);
            match cause {
                DbusError::NotConnected { .. } => {
                    error.details("start firewalld, or remove the key backend")
                }
                _ => error,
            }
        })?;
        Ok(Firewalld(bus))
    }

    /// `None` if firewalld does not own its name. A call would start it, if systemd may do so.
    fn running() -> Option<Firewalld> {
        let mut bus = Bus::system().ok()?;
        bus.call(BUS, "GetNameOwner", &[ZONES.destination]).ok()?;
        Some(Firewalld(bus))
    }

    fn call(&mut self, method: &str, zone: &str, address: IpAddr) -> Result<Value, DbusError> {
        let source = Cidr::host(address).to_string();
        self.0.call(ZONES, method, &[zone, &source])
    }

    fn contains(&mut self, zone: &str, address: IpAddr) -> Result<bool, DbusError> {
        let answer = self.call("querySource", zone, address)?;
        Ok(answer == Value::Bool(true))
    }

    /// The zone to which an address is bound.
    fn zone_of(&mut self, address: IpAddr) -> Option<String> {
        let source = Cidr::host(address).to_string();
        match self.0.call(ZONES, "getZoneOfSource", &[&source]) {
            Ok(Value::Text(zone)) if !zone.is_empty() => Some(zone),
            _ => None,
        }
    }

    fn add(&mut self, zone: &str, address: IpAddr) -> Result<(), Error> {
        let cause = match self.call("addSource", zone, address) {
            Ok(_) => return Ok(()),
            Err(cause) => cause,
        };
        // Also the answer to an address that the zone has.
        if let DbusError::Refused(_) = cause {
            match self.zone_of(address) {
                Some(other) if other == zone => return Ok(()),
                Some(other) => {
                    let error = failed("add", (address, zone), &cause);
                    let source = Cidr::host(address);
                    return Err(error.details(format!(
                        "it is in the zone {other}: set firewalldZone to that zone, or run firewall-cmd --zone={other} --remove-source={source}"
                    )));
                }
                None => {}
            }
        }
        Err(failed("add", (address, zone), &cause))
    }

    fn remove(&mut self, zone: &str, address: IpAddr) -> Result<(), Error> {
        let Err(cause) = self.call("removeSource", zone, address) else {
            return Ok(());
        };
        // An address or zone that does not exist is an error too.
        match cause {
            DbusError::Refused(_) if !matches!(self.contains(zone, address), Ok(true)) => Ok(()),
            cause => Err(failed("remove", (address, zone), &cause)),
        }
    }
}

fn failed(operation: &str, (address, zone): (IpAddr, &str), cause: &DbusError) -> Error {
    let preposition = match operation {
        "add" => "to",
        "remove" => "from",
        _ => "in",
    };
    let what = format!("cannot {operation} {address} {preposition} the firewalld zone {zone}");
    Error::new(code_of(cause), format!("firewall: {what}: {cause}"))
}

fn code_of(cause: &DbusError) -> Code {
    match cause {
        DbusError::TimedOut(_) | DbusError::Terminated(_) => Code::TRY_AGAIN,
        _ => Code::PLUGIN,
    }
}
