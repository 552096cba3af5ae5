//! CNI_ARGS (CNI spec 1.1, section 2, "Parameters").

use std::net::IpAddr;

use crate::cni::environment::is_true;
use crate::error::{Code, Error};
use crate::net::{Cidr, Mac, ParseError, parse_ip};

/// CNI_ARGS, split once for the plugin and its in-process IPAM plugin. Values are parsed when they are used: those
/// meant for another plugin may have any form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    mac: Option<String>,
    ips: Option<String>,
    gateways: Option<String>,
    /// `K8S_POD_NAMESPACE/K8S_POD_NAME`
    pub pod: Option<String>,
}

impl Args {
    /// Keys for other plugins, set by runtimes.
    const IGNORED: [&'static str; 2] = ["K8S_POD_INFRA_CONTAINER_ID", "K8S_POD_UID"];

    /// Parses `KEY=VALUE;KEY=VALUE`; keys are case-sensitive, empty values count as absent.
    ///
    /// # Errors
    /// Code 4: an entry without exactly one `=`, or unknown keys without `IgnoreUnknown=1`.
    pub fn parse(text: &str) -> Result<Args, Error> {
        let mut args = Args::default();
        let mut ignore_unknown = false;
        let mut unknown = Vec::new();
        let (mut namespace, mut name) = (None, None);
        for (at, entry) in text.split(';').filter(|_| !text.is_empty()).enumerate() {
            // Not quoted: it may be part of a secret value that contains a ";".
            let (key, value) = entry
                .split_once('=')
                .ok_or_else(|| invalid(format!("entry {} is not KEY=VALUE", at + 1)))?;
            if value.contains('=') {
                return Err(invalid(format!("the value of {key:?} contains a \"=\"")));
            }
            match key {
                "IgnoreUnknown" => {
                    ignore_unknown = match value {
                        _ if is_true(value) => true,
                        _ if value == "0" || value.eq_ignore_ascii_case("false") => false,
                        _ => {
                            return Err(invalid(format!(
                                "IgnoreUnknown is {value:?}, not a boolean"
                            )));
                        }
                    }
                }
                "MAC" => args.mac = non_empty(value),
                "IP" => args.ips = non_empty(value),
                "GATEWAY" => args.gateways = non_empty(value),
                "K8S_POD_NAMESPACE" => namespace = Some(value),
                "K8S_POD_NAME" => name = Some(value),
                _ if Args::IGNORED.contains(&key) => {}
                _ => unknown.push(key),
            }
        }
        if !unknown.is_empty() && !ignore_unknown {
            return Err(invalid(format!("unknown keys {unknown:?}"))
                .details("add IgnoreUnknown=1 to ignore them"));
        }
        args.pod = namespace
            .zip(name)
            .map(|(namespace, name)| format!("{namespace}/{name}"));
        Ok(args)
    }

    /// The requested MAC address of the container's interface.
    ///
    /// # Errors
    /// Code 4 if `MAC=` is not a MAC address.
    pub fn mac(&self) -> Result<Option<Mac>, Error> {
        let mac = self.mac.as_deref().map(str::parse).transpose();
        mac.map_err(|cause| invalid(format!("MAC: {cause}")))
    }

    /// The same as text.
    pub fn mac_text(&self) -> Option<&str> {
        self.mac.as_deref()
    }

    /// The requested addresses, without their prefix lengths.
    ///
    /// # Errors
    /// Code 4 if `IP=` is not a list of addresses.
    pub fn ips(&self) -> Result<Vec<IpAddr>, Error> {
        parse_list("IP", &self.ips, parse_requested_ip)
    }

    /// The requested addresses with their prefix lengths.
    ///
    /// # Errors
    /// Code 4 if `IP=` is not a list of addresses in CIDR notation.
    pub fn cidrs(&self) -> Result<Vec<Cidr>, Error> {
        parse_list("IP", &self.ips, |text| text.trim().parse())
    }

    /// The gateways of the requested addresses.
    ///
    /// # Errors
    /// Code 4 if `GATEWAY=` is not a list of addresses.
    pub fn gateways(&self) -> Result<Vec<IpAddr>, Error> {
        parse_list("GATEWAY", &self.gateways, |text| parse_ip(text.trim()))
    }
}

fn parse_list<T>(
    key: &str,
    list: &Option<String>,
    parse: impl Fn(&str) -> Result<T, ParseError>,
) -> Result<Vec<T>, Error> {
    let items = list.iter().flat_map(|list| list.split(','));
    let parsed = items.map(parse).collect::<Result<_, _>>();
    parsed.map_err(|cause| invalid(format!("{key}: {cause}")))
}

fn non_empty(value: &str) -> Option<String> {
    (!value.is_empty()).then(|| value.to_owned())
}

fn invalid(cause: String) -> Error {
    Error::new(
        Code::INVALID_ENVIRONMENT,
        format!("invalid CNI_ARGS: {cause}"),
    )
}

/// Parses a requested address, `IP` or `IP/prefix`. The prefix length is ignored: that of the range applies.
pub fn parse_requested_ip(text: &str) -> Result<IpAddr, ParseError> {
    if text.contains('/') {
        text.parse::<Cidr>().map(Cidr::address)
    } else {
        parse_ip(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn args_are_parsed_in_any_order() {
        let text = "K8S_POD_NAME=web;IgnoreUnknown=1;X=y;MAC=02:00:00:00:00:01;IP=10.1.2.3/24;K8S_POD_NAMESPACE=shop";
        let args = Args::parse(text).unwrap();
        assert_eq!(args.pod.as_deref(), Some("shop/web"));
        assert_eq!(args.mac(), Ok("02:00:00:00:00:01".parse().ok()));
        let ip: IpAddr = "10.1.2.3".parse().unwrap();
        assert_eq!(args.ips(), Ok(vec![ip]));
        let args = Args::parse("IP= 10.1.2.3/24, fd00::3/64;GATEWAY=10.1.2.1, fd00::1").unwrap();
        assert_eq!(args.cidrs().unwrap()[1].to_string(), "fd00::3/64");
        assert_eq!(args.gateways().unwrap()[0].to_string(), "10.1.2.1");
        assert_eq!(Args::parse("").unwrap(), Args::default());
        assert_eq!(Args::parse("IP=;MAC=").unwrap(), Args::default());
    }

    #[test]
    fn an_entry_without_key_is_not_quoted() {
        let error = Args::parse("IgnoreUnknown=1;TOKEN=s3;cret").unwrap_err();
        assert!(error.msg.contains("entry 3"), "{error}");
        assert!(!error.to_string().contains("cret"), "{error}");
    }

    #[test]
    fn invalid_args_are_rejected() {
        for args in [
            "MAC",
            "A=b",
            "MAC=1=2",
            "IP=10.1.2.3;",
            "IgnoreUnknown=yes",
            ";",
            "X=y;IgnoreUnknown=0",
        ] {
            assert!(Args::parse(args).is_err(), "{args:?} was accepted");
        }
    }

    #[test]
    fn an_invalid_value_is_rejected_by_the_plugin_that_uses_it() {
        let args = Args::parse("IP=10.1.2;MAC=zz").unwrap();
        let errors = [args.ips().unwrap_err(), args.mac().unwrap_err()];
        assert_eq!(
            errors.each_ref().map(|error| error.code),
            [Code::INVALID_ENVIRONMENT; 2]
        );
        assert!(
            errors[0].msg.contains("10.1.2") && errors[1].msg.contains("zz"),
            "{errors:?}"
        );
    }
}
