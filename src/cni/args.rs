//! CNI_ARGS (CNI spec 1.1, section 2, "Parameters").

use crate::cni::environment::is_true;
use crate::error::{Code, Error};
use crate::net::{Mac, parse_ip};

/// CNI_ARGS, parsed once for the plugin and its in-process IPAM. Each parses the values that are for it: what is for
/// another plugin may be anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// `MAC=`, unless it is empty.
    mac: Option<String>,
    /// `IP=`, unless it is empty.
    ips: Option<String>,
    /// `K8S_POD_NAMESPACE=` and `K8S_POD_NAME=`, joined by a slash.
    pub pod: Option<String>,
}

impl Args {
    /// Keys that runtimes and neighbouring plugins set and that are not ours to judge.
    const FOREIGN: [&'static str; 3] = ["GATEWAY", "K8S_POD_INFRA_CONTAINER_ID", "K8S_POD_UID"];

    /// Parses `KEY=VALUE;KEY=VALUE`; keys are case-sensitive.
    ///
    /// # Errors
    /// Code 4: a piece without exactly one `=`, or unknown keys without `IgnoreUnknown=1`.
    pub fn parse(text: &str) -> Result<Args, Error> {
        let mut args = Args::default();
        let mut ignore_unknown = false;
        let mut unknown = Vec::new();
        let (mut namespace, mut name) = (None, None);
        for (at, piece) in text.split(';').filter(|_| !text.is_empty()).enumerate() {
            // What stands behind a key may be nobody's business, and what has no key be the rest of such a value.
            let (key, value) = piece.split_once('=').ok_or_else(|| {
                wrong(format!(
                    "piece {} of what \";\" separates is not of the form KEY=VALUE",
                    at + 1
                ))
            })?;
            if value.contains('=') {
                return Err(wrong(format!("the value of {key:?} has a \"=\"")));
            }
            match key {
                "IgnoreUnknown" => {
                    ignore_unknown = match value {
                        _ if is_true(value) => true,
                        _ if value == "0" || value.eq_ignore_ascii_case("false") => false,
                        _ => {
                            return Err(wrong(format!(
                                "IgnoreUnknown is {value:?}, not a boolean"
                            )));
                        }
                    }
                }
                "MAC" => args.mac = filled(value),
                "IP" => args.ips = filled(value),
                "K8S_POD_NAMESPACE" => namespace = Some(value),
                "K8S_POD_NAME" => name = Some(value),
                _ if Args::FOREIGN.contains(&key) => {}
                _ => unknown.push(key),
            }
        }
        if !unknown.is_empty() && !ignore_unknown {
            return Err(wrong(format!("unknown keys {unknown:?}"))
                .details("add IgnoreUnknown=1 to pass them by"));
        }
        args.pod = namespace
            .zip(name)
            .map(|(namespace, name)| format!("{namespace}/{name}"));
        Ok(args)
    }

    /// The MAC address asked for the container's interface.
    ///
    /// # Errors
    /// Code 4 when `MAC=` is none.
    pub fn mac(&self) -> Result<Option<Mac>, Error> {
        let mac = self.mac.as_deref().map(str::parse).transpose();
        mac.map_err(|cause| wrong(format!("MAC: {cause}")))
    }

    /// The addresses asked for; prefix lengths are dropped.
    ///
    /// # Errors
    /// Code 4 when `IP=` is not a list of them.
    pub fn ips(&self) -> Result<Vec<std::net::IpAddr>, Error> {
        let ips = self.ips.iter().flat_map(|ips| ips.split(','));
        ips.map(parse_requested_ip)
            .collect::<Result<_, _>>()
            .map_err(|cause| wrong(format!("IP: {cause}")))
    }
}

fn filled(value: &str) -> Option<String> {
    (!value.is_empty()).then(|| value.to_owned())
}

fn wrong(what: String) -> Error {
    Error::new(
        Code::INVALID_ENVIRONMENT,
        format!("invalid CNI_ARGS: {what}"),
    )
}

/// Parses an address asked for, `IP` or `IP/prefix`: the prefix length is that of the range anyway.
///
/// # Errors
/// When it is neither.
pub fn parse_requested_ip(text: &str) -> Result<std::net::IpAddr, crate::net::ParseError> {
    if text.contains('/') {
        text.parse::<crate::net::Cidr>()
            .map(crate::net::Cidr::address)
    } else {
        parse_ip(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn args_are_read_in_any_order() {
        let text = "K8S_POD_NAME=web;IgnoreUnknown=1;X=y;MAC=02:00:00:00:00:01;IP=10.1.2.3/24;K8S_POD_NAMESPACE=shop";
        let args = Args::parse(text).unwrap();
        assert_eq!(args.pod.as_deref(), Some("shop/web"));
        assert_eq!(args.mac(), Ok("02:00:00:00:00:01".parse().ok()));
        let ip: std::net::IpAddr = "10.1.2.3".parse().unwrap();
        assert_eq!(args.ips(), Ok(vec![ip]));
        assert_eq!(Args::parse("").unwrap(), Args::default());
        assert_eq!(Args::parse("IP=;MAC=").unwrap(), Args::default());
    }

    #[test]
    fn what_has_no_key_is_not_quoted() {
        let error = Args::parse("IgnoreUnknown=1;TOKEN=s3;cret").unwrap_err();
        assert!(error.msg.contains("piece 3"), "{error}");
        assert!(!error.to_string().contains("cret"), "{error}");
    }

    #[test]
    fn wrong_args_are_refused() {
        for wrong in [
            "MAC",
            "A=b",
            "MAC=1=2",
            "IP=10.1.2.3;",
            "IgnoreUnknown=yes",
            ";",
            "X=y;IgnoreUnknown=0",
        ] {
            assert!(Args::parse(wrong).is_err(), "{wrong:?} was taken");
        }
    }

    #[test]
    fn a_wrong_value_is_refused_by_the_plugin_that_it_is_for() {
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
