//! Redaction of requests for the log. Configurations and CNI_ARGS may contain secrets of other plugins: only values of keys of
//! the specification and of this binary's plugins are logged, `…` stands for the others.

use serde_json::Value;

use crate::cni::environment::Environment;
use crate::cni::json::{self, KeyPath, KeyPaths};

/// The variables of the protocol except CNI_ARGS, separated by spaces.
const VARIABLES: &str =
    "CNI_COMMAND CNI_CONTAINERID CNI_NETNS CNI_IFNAME CNI_PATH CNI_NETNS_OVERRIDE";

/// The keys of CNI_ARGS that are logged.
const ARGS: &str = "IgnoreUnknown MAC IP GATEWAY K8S_POD_NAMESPACE K8S_POD_NAME \
    K8S_POD_INFRA_CONTAINER_ID K8S_POD_UID";

const HIDDEN: &str = "…";

/// The keys of the CNI specification and conventions, and those of the log: first the key of an object, or `/` for the
/// configuration itself, then its keys, separated by spaces, or `*` for all. Lower case, because keys are case-insensitive.
const KEYS: &[&str] = &[
    "/ cniversion name type ipmasq dns ipam args runtimeconfig prevresult capabilities logfile loglevel logformat \
     cni.dev/valid-attachments cni.dev/attachments sysctl",
    "sysctl *",
    "ipam type addresses routes dns",
    "addresses address gateway",
    "routes dst gw mtu advmss priority table scope",
    "dns nameservers domain search options",
    "runtimeconfig mac ips ipranges",
    "args cni",
    "cni mac ips sysctl",
    "capabilities mac ips ipranges",
    "prevresult cniversion interfaces ips ip4 ip6 routes dns",
    "interfaces name mac mtu sandbox",
    "ips version interface address gateway",
    "ip4 ip gateway routes",
    "ip6 ip gateway routes",
    "cni.dev/valid-attachments containerid ifname",
    "cni.dev/attachments containerid ifname",
];

fn has(words: &str, word: &str) -> bool {
    words.split(' ').any(|it| it == word)
}

/// `namespace/name` of the pod in CNI_ARGS, even if other entries are invalid.
pub fn pod(args: &str) -> Option<String> {
    let value = |key| args.split(';').find_map(|entry| entry.strip_prefix(key));
    let (namespace, name) = value("K8S_POD_NAMESPACE=").zip(value("K8S_POD_NAME="))?;
    Some(format!("{namespace}/{name}"))
}

/// The variables of a request.
pub fn environment(env: &Environment) -> String {
    let variable = |name: &str| Some(format!("{name}={}", env.var(name)?));
    let mut variables: Vec<String> = VARIABLES.split(' ').filter_map(variable).collect();
    if let Some(args) = env.var("CNI_ARGS") {
        let entries: Vec<String> = args.split(';').map(argument).collect();
        variables.push(format!("CNI_ARGS={}", entries.join(";")));
    }
    variables.join(" ")
}

fn argument(entry: &str) -> String {
    match entry.split_once('=') {
        Some((key, _)) if !has(ARGS, key) => format!("{key}={HIDDEN}"),
        Some(_) => entry.to_owned(),
        // Not KEY=VALUE.
        None if entry.is_empty() => String::new(),
        None => HIDDEN.to_owned(),
    }
}

/// The redacted configuration as it was parsed: keys in lower case, each once. `keys` are those of the plugin
/// ([`crate::plugins::plugin::Plugin::KEYS`]).
pub fn configuration(bytes: &[u8], keys: &[fn() -> KeyPaths]) -> String {
    match json::parse("configuration", bytes) {
        Ok(mut value) => {
            let known = keys.iter().flat_map(|of_struct| of_struct()).collect();
            hide(&mut value, &mut KeyPath::new(), &known);
            value.to_string()
        }
        Err(_) if bytes.is_empty() => String::new(),
        Err(_) => format!("{} bytes that are not JSON", bytes.len()),
    }
}

/// Redacts unknown keys below the value at `path`. Elements of a list have the path of the list.
fn hide(value: &mut Value, path: &mut KeyPath, known: &KeyPaths) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(|item| hide(item, path, known)),
        Value::Object(object) => {
            for (key, value) in object {
                path.push(key.clone());
                match known.contains(path) || is_specified(path) {
                    true => hide(value, path, known),
                    false => *value = HIDDEN.into(),
                }
                path.pop();
            }
        }
        _ => {}
    }
}

/// Whether the specification has the key at the end of a path.
fn is_specified(path: &[String]) -> bool {
    let (parent, key) = match path {
        [.., parent, key] => (parent.as_str(), key),
        [key] => ("/", key),
        [] => return false,
    };
    KEYS.iter().any(|line| {
        let (under, known) = line.split_once(' ').unwrap_or((line, ""));
        under == parent && (known == "*" || has(known, key))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_unknown_keys_are_redacted() {
        let text = r#"{"name": "n", "TYPE": "bridge", "token": "s3cret", "ipam": {"type": "x", "password": "s3cret",
            "ranges": [[{"subnet": "10.1.0.0/24", "note": "s3cret"}]]}, "args": {"cni": {"ips": ["10.1.0.7"],
            "labels": [{"key": "s3cret"}]}, "mine": "s3cret"}, "mtu": {"a": "s3cret"},
            "prevResult": {"ips": [{"address": "10.1.0.7/24"}], "x": "s3cret"}, "bridge": ["br0", {"k": "s3cret"}]}"#;
        let shown = configuration(
            text.as_bytes(),
            <crate::plugins::bridge::Bridge as crate::plugins::plugin::Plugin>::KEYS,
        );
        assert!(!shown.contains("s3cret"), "{shown}");
        for known in [
            "\"n\"",
            "bridge",
            "\"token\":\"…\"",
            "\"password\":\"…\"",
            "10.1.0.0/24",
            "10.1.0.7/24",
            "\"br0\"",
        ] {
            assert!(shown.contains(known), "{known}: {shown}");
        }
        assert_eq!(configuration(b"{s3cret", &[]), "7 bytes that are not JSON");
        assert_eq!(configuration(b"", &[]), "");
    }

    #[test]
    fn sysctls_are_shown() {
        let text = r#"{"sysctl": {"net.core.somaxconn": "500", "x": {"y": "s3cret"}}, "args": {"cni": {"sysctl": {"net.a": "600"}}}}"#;
        let shown = configuration(text.as_bytes(), &[]);
        assert!(shown.contains("500") && shown.contains("600"), "{shown}");
        assert!(!shown.contains("s3cret"), "{shown}");
    }

    #[test]
    fn known_args_are_shown() {
        let args = "IgnoreUnknown=1;TOKEN=s3cret;K8S_POD_NAME=web;s3cret;IP=10.1.0.7;K8S_POD_NAMESPACE=shop;A=b=s3cret";
        let env = [
            ("CNI_COMMAND", "ADD".into()),
            ("CNI_ARGS", args.into()),
            ("HOME", "/s3cret".into()),
        ];
        let shown = environment(&env.into_iter().collect());
        let expected = "CNI_COMMAND=ADD CNI_ARGS=IgnoreUnknown=1;TOKEN=…;K8S_POD_NAME=web;…;IP=10.1.0.7;\
                        K8S_POD_NAMESPACE=shop;A=…";
        assert_eq!(shown, expected);
        assert_eq!(pod(args).as_deref(), Some("shop/web"));
        assert_eq!(pod("K8S_POD_NAME=web"), None);
    }
}
