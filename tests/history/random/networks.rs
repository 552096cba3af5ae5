//! The networks of a node.

use serde_json::{Value, json};

/// The containers: few, so that names are reused.
pub const PODS: [&str; 5] = ["p0", "p1", "p2", "p3", "p4"];

/// Interface names in pods; `eth0` most of the time.
pub const INTERFACES: [&str; 2] = ["eth0", "eth1"];

/// The bridges of the networks, and `br9`, to which actions move them.
pub const BRIDGES: [&str; 5] = ["br0", "br1", "br2", "br3", "br9"];

/// All networks; `raw` is host-local called directly.
pub const NETWORKS: [&str; 7] = ["gw", "nft", "dual", "nogw", "flat", "fwd", "raw"];

/// The initial configuration of a network. Ranges are small, so that addresses are reused.
pub fn config(network: &str) -> Value {
    let mut config = json!({ "cniVersion": "1.0.0", "name": network, "type": "bridge" });
    let keys = match network {
        "gw" => {
            json!({ "bridge": "br0", "isGateway": true, "ipMasq": true, "ipMasqBackend": "iptables" })
        }
        "nft" => {
            json!({ "bridge": "br1", "isGateway": true, "ipMasq": true, "ipMasqBackend": "nftables",
            "macspoofchk": true })
        }
        "dual" => {
            json!({ "bridge": "br3", "isDefaultGateway": true, "ipMasq": true, "ipMasqBackend": "iptables" })
        }
        "nogw" => json!({ "bridge": "br0" }),
        "flat" => json!({ "bridge": "br2", "macspoofchk": true }),
        "fwd" => json!({ "bridge": "br2", "isGateway": true, "hairpinMode": true }),
        "raw" => json!({ "type": "host-local" }),
        _ => panic!("no network {network}"),
    };
    config
        .as_object_mut()
        .unwrap()
        .extend(keys.as_object().unwrap().clone());
    let default_route = json!([{ "dst": "0.0.0.0/0" }]);
    config["ipam"] = match network {
        "gw" => json!({ "type": "host-local", "subnet": "10.1.0.0/28", "routes": default_route }),
        "nft" => json!({ "type": "host-local", "subnet": "10.2.0.0/28", "routes": default_route }),
        "dual" => json!({ "type": "host-local",
            "ranges": [[{ "subnet": "10.3.0.0/28" }], [{ "subnet": "fd00:3::/112" }]] }),
        "nogw" => json!({ "type": "host-local", "subnet": "10.4.0.0/28" }),
        "flat" => json!({}),
        "fwd" => json!({ "type": "host-local", "subnet": "10.6.0.0/28" }),
        _ => json!({ "type": "host-local", "subnet": "10.7.0.0/28" }),
    };
    config
}

pub fn is_gateway(config: &Value) -> bool {
    config["isGateway"] == true || config["isDefaultGateway"] == true
}

/// The gateway's IPv4 address with its prefix length: the first of the subnet.
pub fn gateway(config: &Value) -> Option<String> {
    let ipam = &config["ipam"];
    let subnet = ipam["subnet"].as_str();
    let subnet = subnet.or_else(|| ipam["ranges"][0][0]["subnet"].as_str())?;
    Some(subnet.replace(".0/", ".1/"))
}

/// Whether a configuration has addresses assigned by host-local.
pub fn has_leases(config: &Value) -> bool {
    config["ipam"]["type"] == "host-local"
}

/// Whether a network is host-local called directly.
pub fn is_direct(config: &Value) -> bool {
    config["type"] == "host-local"
}

pub fn has_default_route(config: &Value) -> bool {
    config["isDefaultGateway"] == true || !config["ipam"]["routes"].is_null()
}
