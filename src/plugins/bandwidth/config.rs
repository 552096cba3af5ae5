//! The keys of `bandwidth`.

use serde::{Deserialize, Serialize};

use crate::cni::json::JsonCursor;
use crate::error::Error;

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct BandwidthKeys {
    pub runtime_config: RuntimeKeys,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct RuntimeKeys {
    pub bandwidth: LimitKeys,
}

/// The keys of the configuration and of `runtimeConfig.bandwidth`. Rates are in bits per second, bursts in bits.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LimitKeys {
    pub ingress_rate: Option<u64>,
    pub ingress_burst: Option<u64>,
    pub egress_rate: Option<u64>,
    pub egress_burst: Option<u64>,
    pub low_latency: bool,
}

/// The limit of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// In bytes per second.
    pub rate: u64,
    /// In bytes.
    pub burst: u32,
}

/// A `bandwidth` configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BandwidthConfig {
    /// To the container.
    pub ingress: Option<Limit>,
    /// From the container.
    pub egress: Option<Limit>,
    pub low_latency: bool,
}

impl BandwidthConfig {
    /// # Errors
    /// Code 6 for a wrong type, 7 for a wrong value; each names the key.
    pub fn parse(root: &JsonCursor) -> Result<BandwidthConfig, Error> {
        let own: LimitKeys = root.read()?;
        let runtime = root.read::<BandwidthKeys>()?.runtime_config.bandwidth;
        // The values of one object are used, as with the Go plugin.
        let (keys, path) = match own.has_limit() {
            true => (&own, ""),
            false => (&runtime, "runtimeConfig.bandwidth."),
        };
        let limit = |direction: &str, rate: Option<u64>, burst: Option<u64>| {
            limit(
                &format!("{path}{direction}"),
                rate.unwrap_or(0),
                burst.unwrap_or(0),
            )
        };
        Ok(BandwidthConfig {
            ingress: limit("ingress", keys.ingress_rate, keys.ingress_burst)?,
            egress: limit("egress", keys.egress_rate, keys.egress_burst)?,
            low_latency: own.low_latency || runtime.low_latency,
        })
    }

    pub fn is_empty(&self) -> bool {
        self.ingress.is_none() && self.egress.is_none()
    }
}

impl LimitKeys {
    fn has_limit(&self) -> bool {
        let keys = [
            self.ingress_rate,
            self.ingress_burst,
            self.egress_rate,
            self.egress_burst,
        ];
        keys.iter().any(Option::is_some)
    }
}

/// The limit of a direction; `path` is that of its keys, without `Rate` and `Burst`.
fn limit(path: &str, rate: u64, burst: u64) -> Result<Option<Limit>, Error> {
    let invalid = |key: &str, value: u64, wanted: &str| {
        Err(Error::config(format!("{path}{key}"), value, wanted))
    };
    // The largest burst of the Go plugin is 4294967294 bytes.
    let bytes = u32::try_from(burst / 8).ok().filter(|it| *it < u32::MAX);
    match (rate, burst, bytes) {
        (0, 0, _) => Ok(None),
        (0, ..) => invalid("Rate", rate, "if burst is set, rate must also be set"),
        (_, 0, _) => invalid("Burst", burst, "if rate is set, burst must also be set"),
        (1..8, ..) => invalid("Rate", rate, "it must be at least 8 bits per second"),
        (_, _, None) => invalid(
            "Burst",
            burst,
            "burst cannot be more than 4GB: 34359738359 bits",
        ),
        (rate, _, Some(burst)) => Ok(Some(Limit {
            rate: rate / 8,
            burst,
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::json;

    fn parse(text: &str) -> Result<BandwidthConfig, Error> {
        let value = json::parse("configuration", text.as_bytes()).unwrap();
        BandwidthConfig::parse(&JsonCursor::root("configuration", &value))
    }

    fn limit(rate: u64, burst: u32) -> Option<Limit> {
        Some(Limit { rate, burst })
    }

    #[test]
    fn one_limit_at_the_top_level_replaces_those_of_the_runtime() {
        let runtime = r#""runtimeConfig": {"bandwidth": {"ingressRate": 80, "ingressBurst": 160, "egressRate": 8, "egressBurst": 8}}"#;
        let of_runtime = parse(&format!("{{{runtime}}}")).unwrap();
        assert_eq!(
            (of_runtime.ingress, of_runtime.egress),
            (limit(10, 20), limit(1, 1))
        );
        let own = parse(&format!(
            r#"{{"ingressRate": 8000, "ingressBurst": 8, {runtime}}}"#
        ));
        assert_eq!(own.as_ref().map(|it| it.ingress), Ok(limit(1000, 1)));
        assert_eq!(own.map(|it| it.egress), Ok(None));
        assert!(
            parse(&format!(r#"{{"egressRate": 0, {runtime}}}"#))
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn low_latency_is_no_limit_and_may_be_anywhere() {
        for text in [
            r#"{"lowLatency": true, "runtimeConfig": {"bandwidth": {"egressRate": 8, "egressBurst": 8}}}"#,
            r#"{"runtimeConfig": {"bandwidth": {"egressRate": 8, "egressBurst": 8, "lowLatency": true}}}"#,
        ] {
            let config = parse(text).unwrap();
            assert_eq!((config.egress, config.low_latency), (limit(1, 1), true));
        }
    }

    #[test]
    fn invalid_limits_are_rejected_with_their_key() {
        for (text, key, code) in [
            (r#"{"ingressRate": 8}"#, "ingressBurst is 0", 7),
            (r#"{"egressBurst": 8}"#, "egressRate is 0", 7),
            (
                r#"{"egressRate": 7, "egressBurst": 8}"#,
                "egressRate is 7",
                7,
            ),
            (
                r#"{"egressRate": 8, "egressBurst": 34359738360}"#,
                "egressBurst is 34359738360",
                7,
            ),
            (r#"{"egressRate": -1}"#, "egressRate is -1", 6),
            (r#"{"egressRate": 1.5}"#, "egressRate is 1.5", 6),
            (r#"{"egressRate": "1M"}"#, "egressRate is \"1M\"", 6),
            (
                r#"{"runtimeConfig": {"bandwidth": {"egressRate": 8}}}"#,
                "runtimeConfig.bandwidth.egressBurst is 0",
                7,
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.msg.contains(key), "{text}: {error}");
            assert_eq!(error.code.0, code, "{text}");
        }
    }

    #[test]
    fn the_largest_numbers_of_the_go_plugin_are_accepted() {
        let config = parse(r#"{"egressRate": 18446744073709551615, "egressBurst": 34359738359}"#);
        assert_eq!(config.unwrap().egress, limit(u64::MAX / 8, u32::MAX - 1));
    }
}
