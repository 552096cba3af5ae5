//! The result of ADD, and its encoding in each protocol version.
//!
//! [`AddResult`] has the fields of CNI spec 1.1, section 5. Key order and omission of empty keys match the Go plugins,
//! so that results are identical byte for byte.

use std::net::IpAddr;

use serde::ser::Error as _;
use serde::{Deserialize, Serialize};
use serde_json::ser::{PrettyFormatter, Serializer};
use serde_json::{Value, json};

use crate::cni::json::{JsonCursor, is_unset};
use crate::cni::{Schema, Version};
use crate::error::{Code, Error};
use crate::net::{Cidr, Family, Route, parse_ip};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddResult {
    pub interfaces: Vec<Interface>,
    pub ips: Vec<IpConfig>,
    pub routes: Vec<Route>,
    pub dns: Dns,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Interface {
    pub name: String,
    /// The MAC address; empty if unknown.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// In bytes; since 1.1.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The path of the container's network namespace; empty for a host interface.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// The socket of a user-space interface; since 1.1.0, copied from previous results.
    #[serde(rename = "socketPath", skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    /// The PCI address of a physical interface; since 1.1.0, copied from previous results.
    #[serde(rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IpConfig {
    /// Index in [`AddResult::interfaces`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// Address and prefix length of the subnet.
    pub address: Cidr,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Dns {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// Empty if there is none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    pub fn is_empty(&self) -> bool {
        *self == Dns::default()
    }

    /// # Errors
    /// Code 6 for a wrong type.
    pub fn parse(json: &JsonCursor) -> Result<Dns, Error> {
        Ok(Dns {
            nameservers: json.texts("nameservers")?.unwrap_or_default(),
            domain: json.text("domain")?.unwrap_or_default().to_owned(),
            search: json.texts("search")?.unwrap_or_default(),
            options: json.texts("options")?.unwrap_or_default(),
        })
    }
}

/// The keys of a route.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct RouteKeys {
    #[serde(skip_serializing_if = "is_unset")]
    pub dst: Option<Cidr>,
    /// Empty for none.
    #[serde(skip_serializing_if = "is_unset")]
    pub gw: String,
    #[serde(skip_serializing_if = "is_unset")]
    pub mtu: Option<i64>,
    #[serde(skip_serializing_if = "is_unset")]
    pub advmss: Option<i64>,
    #[serde(skip_serializing_if = "is_unset")]
    pub priority: Option<i64>,
    #[serde(skip_serializing_if = "is_unset")]
    pub table: Option<i64>,
    #[serde(skip_serializing_if = "is_unset")]
    pub scope: Option<i64>,
}

/// # Errors
/// Code 6 for a wrong type, code 7 for an invalid destination or next hop. Other values are checked when the route is
/// added.
pub fn parse_route(json: JsonCursor) -> Result<Route, Error> {
    let keys: RouteKeys = json.read()?;
    let missing = || {
        json.at("dst")
            .invalid("missing", "a route needs a destination")
    };
    let gw = Some(keys.gw).filter(|gw| !gw.is_empty());
    // The Go plugins omit zero from results ("omitempty").
    let not_zero = |number: Option<i64>| number.filter(|number| *number != 0);
    Ok(Route {
        dst: keys.dst.ok_or_else(missing)?,
        gw: gw
            .map(|gw| json.at("gw").parse_text(&gw, parse_ip))
            .transpose()?,
        mtu: not_zero(keys.mtu),
        advmss: not_zero(keys.advmss),
        priority: not_zero(keys.priority),
        table: keys.table,
        scope: keys.scope,
    })
}

impl AddResult {
    /// Parses a result. If it has no `cniVersion`, it has version `assumed`.
    ///
    /// # Errors
    /// Code 1 for an unsupported version, 6 and 7 for an invalid result.
    pub fn parse(json: &JsonCursor, assumed: Version) -> Result<AddResult, Error> {
        let version = match json.non_empty_text("cniVersion")? {
            Some(text) => Version::parse(text)?,
            None => assumed,
        };
        let dns = json
            .object("dns")?
            .map(|dns| Dns::parse(&dns))
            .transpose()?
            .unwrap_or_default();
        if version.schema() == Schema::V0_1 {
            return AddResult::parse_0_1(json, dns);
        }
        let interfaces = json.list("interfaces")?.unwrap_or_default();
        let ips = json.list("ips")?.unwrap_or_default();
        let routes = json.list("routes")?.unwrap_or_default();
        Ok(AddResult {
            interfaces: interfaces
                .into_iter()
                .map(parse_interface)
                .collect::<Result<_, _>>()?,
            ips: ips
                .into_iter()
                .map(parse_ip_config)
                .collect::<Result<_, _>>()?,
            routes: routes
                .into_iter()
                .map(parse_route)
                .collect::<Result<_, _>>()?,
            dns,
        })
    }

    fn parse_0_1(json: &JsonCursor, dns: Dns) -> Result<AddResult, Error> {
        let mut result = AddResult {
            dns,
            ..AddResult::default()
        };
        for key in ["ip4", "ip6"] {
            let Some(block) = json.object(key)? else {
                continue;
            };
            let address = block
                .parsed("ip")?
                .ok_or_else(|| block.at("ip").invalid("missing", "it must be an address"))?;
            let gateway = parse_gateway(&block)?;
            result.ips.push(IpConfig {
                interface: None,
                address,
                gateway,
            });
            for route in block.list("routes")?.unwrap_or_default() {
                result.routes.push(parse_route(route)?);
            }
        }
        Ok(result)
    }

    /// Whether the version can represent the result.
    ///
    /// # Errors
    /// Code 1 for a result without addresses before 0.3.0.
    pub fn representable(&self, version: Version) -> Result<(), Error> {
        if version.schema() == Schema::V0_1 && self.ips.is_empty() {
            let msg = format!("cniVersion {version} has no result without an address");
            return Err(Error::new(Code::INCOMPATIBLE_VERSION, msg)
                .details("a layer-2 network (no ipam) needs cniVersion 0.3.0 or newer"));
        }
        Ok(())
    }

    /// The JSON document, indented by four spaces, without a newline at the end.
    ///
    /// # Errors
    /// Code 1 if the version cannot represent the result.
    pub fn to_document(&self, version: Version) -> Result<String, Error> {
        self.representable(version)?;
        Ok(match version.schema() {
            Schema::V0_1 => pretty(&self.to_0_1(version)),
            Schema::V0_3 => pretty(&self.to_0_3(version)),
            Schema::V1 => pretty(&self.to_1(version)),
        })
    }

    /// Keys are in alphabetical order, as in a [`Value`].
    fn to_1(&self, version: Version) -> Value {
        let mut document = json!({ "cniVersion": version.as_str() });
        let mut put = |key: &str, is_empty: bool, value: Value| {
            if !is_empty {
                document[key] = value;
            }
        };
        put("dns", self.dns.is_empty(), json!(self.dns));
        put(
            "interfaces",
            self.interfaces.is_empty(),
            json!(self.interfaces),
        );
        put("ips", self.ips.is_empty(), json!(self.ips));
        put("routes", self.routes.is_empty(), json!(self.routes));
        document
    }

    fn to_0_3(&self, version: Version) -> impl Serialize {
        #[derive(Serialize)]
        struct Document {
            #[serde(rename = "cniVersion")]
            version: &'static str,
            #[serde(skip_serializing_if = "Vec::is_empty")]
            interfaces: Vec<Interface>,
            #[serde(skip_serializing_if = "Vec::is_empty")]
            ips: Vec<Ip>,
            #[serde(skip_serializing_if = "Vec::is_empty")]
            routes: Vec<Route>,
            dns: Dns,
        }
        #[derive(Serialize)]
        struct Ip {
            version: &'static str,
            #[serde(flatten)]
            ip: IpConfig,
        }
        let without_1_1_fields = |interface: &Interface| Interface {
            name: interface.name.clone(),
            mac: interface.mac.clone(),
            sandbox: interface.sandbox.clone(),
            ..Interface::default()
        };
        let versioned = |ip: &IpConfig| Ip {
            version: match ip.address.family() {
                Family::V4 => "4",
                Family::V6 => "6",
            },
            ip: ip.clone(),
        };
        Document {
            version: version.as_str(),
            interfaces: self.interfaces.iter().map(without_1_1_fields).collect(),
            ips: self.ips.iter().map(versioned).collect(),
            routes: self.routes.clone(),
            dns: self.dns.clone(),
        }
    }

    fn to_0_1(&self, version: Version) -> impl Serialize {
        #[derive(Serialize)]
        struct Document {
            #[serde(rename = "cniVersion")]
            version: &'static str,
            #[serde(skip_serializing_if = "Option::is_none")]
            ip4: Option<Block>,
            #[serde(skip_serializing_if = "Option::is_none")]
            ip6: Option<Block>,
            dns: Dns,
        }
        #[derive(Serialize)]
        struct Block {
            ip: Cidr,
            #[serde(skip_serializing_if = "Option::is_none")]
            gateway: Option<IpAddr>,
            #[serde(skip_serializing_if = "Vec::is_empty")]
            routes: Vec<Route>,
        }
        let block = |family: Family| {
            let ip = self.ips.iter().find(|ip| ip.address.family() == family)?;
            let routes = self
                .routes
                .iter()
                .filter(|route| route.dst.family() == family);
            let routes = routes
                .map(|route| Route::new(route.dst, route.gw))
                .collect();
            Some(Block {
                ip: ip.address,
                gateway: ip.gateway,
                routes,
            })
        };
        Document {
            version: version.as_str(),
            ip4: block(Family::V4),
            ip6: block(Family::V6),
            dns: self.dns.clone(),
        }
    }
}

fn parse_interface(json: JsonCursor) -> Result<Interface, Error> {
    let json = json.into_object()?;
    let text = |key| Ok::<_, Error>(json.text(key)?.unwrap_or_default().to_owned());
    Ok(Interface {
        name: text("name")?,
        mac: text("mac")?,
        mtu: json.number("mtu", 0..=u32::MAX)?.filter(|mtu| *mtu > 0),
        sandbox: text("sandbox")?,
        socket_path: text("socketPath")?,
        pci_id: text("pciID")?,
    })
}

fn parse_ip_config(json: JsonCursor) -> Result<IpConfig, Error> {
    let json = json.into_object()?;
    let address = json.parsed("address")?.ok_or_else(|| {
        json.at("address")
            .invalid("missing", "it must be an address")
    })?;
    let interface = json
        .number("interface", 0..=u32::MAX)?
        .map(|index| index as usize);
    Ok(IpConfig {
        interface,
        address,
        gateway: parse_gateway(&json)?,
    })
}

fn parse_gateway(json: &JsonCursor) -> Result<Option<IpAddr>, Error> {
    let gateway = json
        .get("gateway")
        .filter(|gateway| gateway.as_text() != Ok(""));
    gateway
        .map(|gateway| gateway.parse_with(parse_ip))
        .transpose()
}

/// Serializes with an indent of four spaces and without a newline at the end.
pub(crate) fn pretty(value: &impl Serialize) -> String {
    indented(value, b"    ")
}

/// Serializes with an indent and without a newline at the end.
pub(crate) fn indented(value: &impl Serialize, indent: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(1024);
    let formatter = PrettyFormatter::with_indent(indent);
    let mut serializer = Serializer::with_formatter(&mut bytes, formatter);
    value
        .serialize(&mut serializer)
        .and_then(|()| String::from_utf8(bytes).map_err(serde_json::Error::custom))
        .expect("keys are strings and no serializer fails")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::json;
    use crate::test_random::TestRandom;

    fn sample() -> AddResult {
        let ip = |address: &str, gateway: &str| IpConfig {
            interface: Some(0),
            address: address.parse().unwrap(),
            gateway: gateway.parse().ok(),
        };
        AddResult {
            interfaces: vec![Interface {
                name: "eth0".into(),
                mac: "0a:58:0a:01:02:03".into(),
                mtu: Some(1450),
                sandbox: "/run/netns/x".into(),
                ..Interface::default()
            }],
            ips: vec![ip("10.1.2.3/24", "10.1.2.1"), ip("fd00::3/64", "")],
            routes: vec![Route {
                mtu: Some(1400),
                scope: Some(0),
                ..Route::new("0.0.0.0/0".parse().unwrap(), None)
            }],
            dns: Dns::default(),
        }
    }

    fn read(text: &str, version: Version) -> AddResult {
        let value = json::parse("result", text.as_bytes()).unwrap();
        AddResult::parse(&JsonCursor::root("result", &value), version).unwrap()
    }

    #[test]
    fn version_1_has_alphabetical_keys_and_omits_empty_ones() {
        let compact: String = sample()
            .to_document(Version::V1_0_0)
            .unwrap()
            .split_whitespace()
            .collect();
        assert_eq!(
            compact,
            concat!(
                r#"{"cniVersion":"1.0.0","interfaces":[{"mac":"0a:58:0a:01:02:03","mtu":1450,"name":"eth0","#,
                r#""sandbox":"/run/netns/x"}],"ips":[{"address":"10.1.2.3/24","gateway":"10.1.2.1","interface":0},"#,
                r#"{"address":"fd00::3/64","interface":0}],"routes":[{"dst":"0.0.0.0/0","mtu":1400,"scope":0}]}"#
            )
        );
    }

    #[test]
    fn version_0_3_has_an_ip_version_per_address_and_always_dns() {
        let text = sample().to_document(Version::V0_3_1).unwrap();
        assert!(
            text.starts_with("{\n    \"cniVersion\": \"0.3.1\",\n    \"interfaces\": ["),
            "{text}"
        );
        let compact: String = text.split_whitespace().collect();
        assert_eq!(
            compact,
            concat!(
                r#"{"cniVersion":"0.3.1","interfaces":[{"name":"eth0","mac":"0a:58:0a:01:02:03","sandbox":"/run/netns/x"}],"#,
                r#""ips":[{"version":"4","interface":0,"address":"10.1.2.3/24","gateway":"10.1.2.1"},"#,
                r#"{"version":"6","interface":0,"address":"fd00::3/64"}],"routes":[{"dst":"0.0.0.0/0","mtu":1400,"scope":0}],"dns":{}}"#
            )
        );
    }

    #[test]
    fn version_0_1_has_one_object_per_family() {
        let compact: String = sample()
            .to_document(Version::V0_2_0)
            .unwrap()
            .split_whitespace()
            .collect();
        assert_eq!(
            compact,
            concat!(
                r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.1.2.3/24","gateway":"10.1.2.1","routes":[{"dst":"0.0.0.0/0"}]},"#,
                r#""ip6":{"ip":"fd00::3/64"},"dns":{}}"#
            )
        );
        assert!(AddResult::default().to_document(Version::V0_1_0).is_err());
    }

    #[test]
    fn a_result_is_the_same_after_encoding_and_decoding() {
        let whole = sample();
        assert_eq!(
            read(
                &whole.to_document(Version::V1_1_0).unwrap(),
                Version::V0_4_0
            ),
            whole
        );
        let mut without_mtu = whole.clone();
        without_mtu.interfaces[0].mtu = None;
        assert_eq!(
            read(
                &whole.to_document(Version::V0_4_0).unwrap(),
                Version::V1_0_0
            ),
            without_mtu
        );
        let old = read(
            &whole.to_document(Version::V0_1_0).unwrap(),
            Version::V1_0_0,
        );
        assert_eq!(
            (old.ips.len(), old.routes.len(), old.interfaces.len()),
            (2, 1, 0)
        );
    }

    fn any_text(random: &mut TestRandom) -> String {
        random
            .choose(&[
                "eth0",
                "a b",
                "\u{fc}\"\\\n",
                "/run/netns/x",
                "0a:58:0a:01:02:03",
            ])
            .into()
    }

    fn any_texts(random: &mut TestRandom) -> Vec<String> {
        (0..random.below(3)).map(|_| any_text(random)).collect()
    }

    fn any_address(random: &mut TestRandom) -> IpAddr {
        random
            .choose(&["10.1.2.3", "255.255.255.255", "fd00::3", "::"])
            .parse()
            .unwrap()
    }

    fn any_cidr(random: &mut TestRandom) -> Cidr {
        let address = any_address(random);
        let bits = Family::of(address).bits();
        Cidr::new(address, random.below(usize::from(bits) + 1) as u8).unwrap()
    }

    fn any_route(random: &mut TestRandom) -> Route {
        let any = |random: &mut TestRandom| random.bits() as i64;
        let not_zero = |random: &mut TestRandom| any(random) | 1;
        Route {
            gw: random.maybe(any_address),
            mtu: random.maybe(not_zero),
            advmss: random.maybe(not_zero),
            priority: random.maybe(not_zero),
            table: random.maybe(any),
            scope: random.maybe(any),
            ..Route::new(any_cidr(random), None)
        }
    }

    fn any_result(random: &mut TestRandom) -> AddResult {
        let interface = |random: &mut TestRandom| Interface {
            name: any_text(random),
            mac: any_text(random),
            mtu: random.maybe(|random| (random.bits() as u32).max(1)),
            sandbox: any_text(random),
            socket_path: any_text(random),
            pci_id: any_text(random),
        };
        let ip = |random: &mut TestRandom| IpConfig {
            interface: random.maybe(|random| random.below(3)),
            address: any_cidr(random),
            gateway: random.maybe(any_address),
        };
        AddResult {
            interfaces: (0..random.below(3)).map(|_| interface(random)).collect(),
            ips: (0..random.below(4)).map(|_| ip(random)).collect(),
            routes: (0..random.below(4)).map(|_| any_route(random)).collect(),
            dns: Dns {
                nameservers: any_texts(random),
                domain: random.maybe(any_text).unwrap_or_default(),
                search: any_texts(random),
                options: any_texts(random),
            },
        }
    }

    #[test]
    fn random_results_keep_everything_that_a_version_represents() {
        let mut random = TestRandom(0xd1ce);
        for _ in 0..500 {
            let result = any_result(&mut random);
            for version in Version::ALL {
                let Ok(document) = result.to_document(version) else {
                    assert!(version.schema() == Schema::V0_1 && result.ips.is_empty());
                    continue;
                };
                let decoded = read(&document, random.choose(&Version::ALL));
                let mut expected = result.clone();
                match version.schema() {
                    Schema::V1 => {}
                    Schema::V0_3 => expected.interfaces.iter_mut().for_each(|interface| {
                        interface.mtu = None;
                        interface.socket_path.clear();
                        interface.pci_id.clear();
                    }),
                    // One address of each family; destination and next hop of the routes of these families.
                    Schema::V0_1 => {
                        let of =
                            |family| expected.ips.iter().find(|ip| ip.address.family() == family);
                        let ips: Vec<_> =
                            Family::BOTH.into_iter().filter_map(of).cloned().collect();
                        let routes = ips.iter().flat_map(|ip| {
                            let family = ip.address.family();
                            expected
                                .routes
                                .iter()
                                .filter(move |r| r.dst.family() == family)
                        });
                        expected.routes = routes.map(|r| Route::new(r.dst, r.gw)).collect();
                        expected.ips = ips;
                        expected.ips.iter_mut().for_each(|ip| ip.interface = None);
                        expected.interfaces.clear();
                    }
                }
                assert_eq!(decoded, expected, "{version}: {document}");
            }
        }
    }
}
