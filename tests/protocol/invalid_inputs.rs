//! The table of invalid inputs. Each entry changes one thing in a valid ADD.

use serde_json::{Value, json};

use crate::invalid_values;

pub struct InvalidInput {
    pub name: &'static str,
    pub plugin: &'static str,
    /// Changed variables; `None` unsets a variable.
    pub env: Vec<(&'static str, Option<String>)>,
    pub config: Value,
    /// Bytes on stdin instead of the configuration.
    pub raw: Option<Vec<u8>>,
    /// Accepted error codes.
    pub codes: Vec<u64>,
    /// Texts that the message must contain: field and value.
    pub words: Vec<&'static str>,
    /// Whether the Go plugins accept the input.
    pub accepted_by_go: bool,
}

impl InvalidInput {
    /// The valid configuration that the entries modify.
    pub fn valid() -> Value {
        json!({
            "cniVersion": "1.0.0",
            "name": "net",
            "type": "bridge",
            "bridge": "br0",
            "isGateway": true,
            "ipMasq": true,
            "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.1.2.0/24" }]] },
        })
    }

    /// An entry without modification.
    pub fn new(name: &'static str, codes: &[u64], words: &[&'static str]) -> InvalidInput {
        InvalidInput {
            name,
            plugin: "bridge",
            env: Vec::new(),
            config: InvalidInput::valid(),
            raw: None,
            codes: codes.to_vec(),
            words: words.to_vec(),
            accepted_by_go: false,
        }
    }

    /// Sets the value at a path such as `/ipam/subnet`.
    pub fn set(mut self, path: &str, value: Value) -> InvalidInput {
        let (parents, key) = path.rsplit_once('/').unwrap();
        let mut at = &mut self.config;
        for parent in parents.split('/').skip(1) {
            at = &mut at[parent];
        }
        at[key] = value;
        self
    }

    /// Sets a variable.
    pub fn var(mut self, name: &'static str, value: &str) -> InvalidInput {
        self.env.push((name, Some(value.to_owned())));
        self
    }

    /// Unsets a variable.
    fn unset(mut self, name: &'static str) -> InvalidInput {
        self.env.push((name, None));
        self
    }

    /// Sets the bytes on stdin.
    fn bytes(mut self, bytes: impl Into<Vec<u8>>) -> InvalidInput {
        self.raw = Some(bytes.into());
        self
    }

    /// Sets the accepted error codes.
    pub fn codes(mut self, codes: &[u64]) -> InvalidInput {
        self.codes = codes.to_vec();
        self
    }

    /// The Go plugins accept the input.
    pub fn accepted_by_go(mut self) -> InvalidInput {
        self.accepted_by_go = true;
        self
    }
}

pub fn invalid_inputs() -> Vec<InvalidInput> {
    let mut inputs = documents();
    inputs.extend(identity());
    inputs.extend(environment());
    inputs.extend(namespaces());
    inputs.extend(types());
    inputs.extend(invalid_values::of_the_bridge());
    inputs.extend(invalid_values::of_gangplank_keys());
    inputs.extend(invalid_values::of_ranges());
    inputs.extend(invalid_values::of_requests());
    inputs.extend(invalid_values::of_routes());
    inputs
}

fn documents() -> Vec<InvalidInput> {
    let valid = InvalidInput::valid().to_string();
    let mut bom = b"\xef\xbb\xbf".to_vec();
    bom.extend(valid.bytes());
    let bad = |name, words: &[&'static str]| InvalidInput::new(name, &[6], words);
    vec![
        bad("nothing on stdin", &["configuration"]).bytes(""),
        bad("only white space", &["configuration"]).bytes(" \n\t "),
        bad("half a document", &["configuration", "JSON"]).bytes(&valid[..valid.len() / 2]),
        bad("two documents", &["configuration", "JSON"]).bytes(format!("{valid}{valid}")),
        bad("something behind the document", &["JSON"]).bytes(format!("{valid} x")),
        bad("a byte order mark", &["JSON"]).bytes(bom),
        bad("a list", &["configuration"]).bytes("[]"),
        bad("a string", &["configuration"]).bytes("\"bridge\""),
        bad("a number", &["configuration"]).bytes("5"),
        bad("YAML", &["JSON"]).bytes("cniVersion: 1.0.0\nname: net\n"),
        bad("single quotes", &["JSON"]).bytes("{'name': 'net'}"),
        bad("a comment", &["JSON"]).bytes(format!("// the pods' network\n{valid}")),
        bad("deep nesting", &["JSON"]).bytes("[".repeat(20_000)),
        InvalidInput::new("null", &[7], &["name"]).bytes("null"),
    ]
}

fn identity() -> Vec<InvalidInput> {
    let name = |what, value: Value, word| {
        InvalidInput::new(what, &[7], &["name", word]).set("/name", value)
    };
    let version = |what, text: &'static str| {
        InvalidInput::new(what, &[1], &[text, "0.3.1"]).set("/cniVersion", text.into())
    };
    vec![
        name("no name", Value::Null, "name"),
        name("an empty name", "".into(), "\"\""),
        name("a name that climbs", "../x".into(), "../x"),
        name("a name of two dots", "..".into(), ".."),
        name("a name with a slash", "a/b".into(), "a/b"),
        name("a name with a space", "a b".into(), "a b"),
        name("a name with a NUL", "a\0b".into(), "a\\0b"),
        name("a name with a newline", "a\nb".into(), "a\\nb"),
        name("a name beyond ASCII", "größe".into(), "größe"),
        InvalidInput::new("a name that is a number", &[6], &["name", "5"]).set("/name", json!(5)),
        version("a version of the future", "9.9.9"),
        version("half a version", "1.1"),
        version("a version that never was", "0.3.2"),
        version("a version with a v", "v1.0.0"),
        InvalidInput::new("a version that is a number", &[6], &["cniVersion"])
            .set("/cniVersion", json!(1.0)),
        InvalidInput::new(
            "layer 2 in a version without interfaces",
            &[1, 7],
            &["0.2.0"],
        )
        .set("/cniVersion", "0.2.0".into())
        .set("/ipMasq", false.into())
        .set("/ipam", Value::Null),
        InvalidInput::new(
            "two IPv4 addresses in a version that has one",
            &[1, 7],
            &["0.2.0"],
        )
        .set("/cniVersion", "0.2.0".into())
        .set("/isGateway", false.into())
        .set(
            "/ipam/ranges",
            json!([[{ "subnet": "10.1.2.0/24" }], [{ "subnet": "10.1.3.0/24" }]]),
        ),
    ]
}

fn environment() -> Vec<InvalidInput> {
    let var = |what, variable: &'static str, value: &str, word| {
        InvalidInput::new(what, &[4], &[variable, word]).var(variable, value)
    };
    let id = "CNI_CONTAINERID";
    let ifname = "CNI_IFNAME";
    let args = "CNI_ARGS";
    vec![
        var("a verb in lower case", "CNI_COMMAND", "add", "\"add\""),
        var("a verb that is none", "CNI_COMMAND", "UPDATE", "UPDATE"),
        InvalidInput::new("no container id", &[4], &[id]).unset(id),
        InvalidInput::new("no interface name", &[4], &[ifname]).unset(ifname),
        InvalidInput::new("no netns", &[4], &["CNI_NETNS"]).unset("CNI_NETNS"),
        InvalidInput::new("no path", &[4], &["CNI_PATH"]).unset("CNI_PATH"),
        var("a container id with a slash", id, "a/b", "a/b"),
        var(
            "a container id that begins with an underscore",
            id,
            "_a",
            "_a",
        ),
        var("a container id with a newline", id, "a\nb", "a\\nb"),
        var("a container id beyond ASCII", id, "ä", "ä"),
        var(
            "an interface name of 16 bytes",
            ifname,
            "abcdefghijklmnop",
            "abcdefghijklmnop",
        ),
        var("an interface name with a slash", ifname, "a/b", "a/b"),
        var("an interface name with a colon", ifname, "a:b", "a:b"),
        var("an interface name with a space", ifname, "a b", "a b"),
        var("an interface name of one dot", ifname, ".", "\".\""),
        var("an interface name of two dots", ifname, "..", "\"..\""),
        var("args without =", args, "A=1;FOO", "entry 2"),
        var(
            "args with two =",
            args,
            "IgnoreUnknown=1;FOO=a=b",
            "\"FOO\"",
        ),
        var("args that end in ;", args, "IgnoreUnknown=1;", "entry 2"),
        var("args with an unknown key", args, "COLOUR=red", "COLOUR"),
        var(
            "args with an invalid IgnoreUnknown",
            args,
            "IgnoreUnknown=perhaps",
            "perhaps",
        ),
        var(
            "args with an invalid MAC",
            args,
            "IgnoreUnknown=1;MAC=zz",
            "zz",
        ),
        var(
            "args with an invalid address",
            args,
            "IP=10.1.2.300",
            "10.1.2.300",
        ),
    ]
}

fn namespaces() -> Vec<InvalidInput> {
    let netns = |what, codes: &[u64], path: &'static str| {
        InvalidInput::new(what, codes, &["CNI_NETNS", path]).var("CNI_NETNS", path)
    };
    vec![
        netns("a netns that is missing", &[4, 999], "/run/netns/missing"),
        netns("a netns that is a plain file", &[4, 999], "/run/plain"),
        netns("a netns that is a directory", &[4, 999], "/run/netns"),
        netns("a netns that is a device", &[4, 999], "/dev/null"),
        netns("a namespace of mounts", &[4, 999], "/proc/self/ns/mnt"),
        netns("our own netns", &[8], "/proc/self/ns/net").accepted_by_go(),
    ]
}

fn types() -> Vec<InvalidInput> {
    let bad = |what, path: &'static str, value: Value| {
        let field = path[1..].rsplit('/').next().unwrap();
        InvalidInput::new(what, &[6], &[field]).set(path, value)
    };
    vec![
        bad("bridge: a number", "/bridge", json!(5)),
        bad("isGateway: a string", "/isGateway", json!("yes")),
        bad("isDefaultGateway: a number", "/isDefaultGateway", json!(1)),
        bad("forceAddress: a string", "/forceAddress", json!("true")),
        bad("ipMasq: a list", "/ipMasq", json!([])),
        bad("ipMasqBackend: a number", "/ipMasqBackend", json!(5)).accepted_by_go(),
        bad("mtu: a number in a string", "/mtu", json!("1500")).codes(&[7]),
        bad("mtu: a list", "/mtu", json!([1500])),
        bad("mtu: a fraction", "/mtu", json!(1500.5)),
        bad("hairpinMode: an object", "/hairpinMode", json!({})),
        bad("promiscMode: a number", "/promiscMode", json!(0)),
        bad("vlan: a string", "/vlan", json!("5")),
        bad("dns: a list", "/dns", json!([])),
        bad(
            "nameservers: a string",
            "/dns/nameservers",
            json!("10.0.0.1"),
        ),
        bad("ipam: a string", "/ipam", json!("host-local")),
        bad("ipam: a list", "/ipam", json!([])),
        bad("ipam.type: a number", "/ipam/type", json!(5)),
        bad("ipam.subnet: a number", "/ipam/subnet", json!(10)),
        bad("ipam.ranges: an object", "/ipam/ranges", json!({})),
        bad(
            "ipam.ranges: a list of ranges",
            "/ipam/ranges",
            json!([{ "subnet": "10.1.2.0/24" }]),
        ),
        bad(
            "ipam.ranges: a list of strings",
            "/ipam/ranges",
            json!([["10.1.2.0/24"]]),
        ),
        bad("ipam.routes: an object", "/ipam/routes", json!({})),
        bad("ipam.routes: strings", "/ipam/routes", json!(["0.0.0.0/0"])),
        bad("ipam.dataDir: a number", "/ipam/dataDir", json!(5)),
        bad("ipam.resolvConf: a list", "/ipam/resolvConf", json!([])),
        bad("runtimeConfig: a list", "/runtimeConfig", json!([])),
        bad(
            "runtimeConfig.mac: a number",
            "/runtimeConfig",
            json!({ "mac": 5 }),
        ),
        bad(
            "runtimeConfig.ips: a string",
            "/runtimeConfig",
            json!({ "ips": "10.1.2.9" }),
        ),
    ]
}
