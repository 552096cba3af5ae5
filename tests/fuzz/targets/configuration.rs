//! The configuration on stdin: accepted values satisfy the invariants of their types, up to the printed result.

#![no_main]

use std::collections::HashSet;
use std::sync::OnceLock;

use gangplank::cni::args::Args;
use gangplank::cni::conf::NetConf;
use gangplank::cni::json::{self, JsonCursor};
use gangplank::cni::names::Attachment;
use gangplank::cni::result::{AddResult, IpConfig};
use gangplank::cni::{Schema, Version};
use gangplank::ipam::allocate::next_free;
use gangplank::ipam::config::Config;
use gangplank::ipam::{Ipam, IpamLeases, Lease};
use gangplank::plugins::attachment::mtu::Mtu;
use gangplank::plugins::bridge::config::BridgeConfig;
use gangplank::plugins::bridge::plan::{ObservedLinks, Plan, PlanInput};
use gangplank::plugins::firewall::config::FirewallConfig;
use gangplank::plugins::portmap::config::PortmapConfig;
use gangplank::plugins::tuning::config::TuningConfig;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(conf) = NetConf::parse(data.to_vec()) else {
        return;
    };
    let name = conf.name.as_str();
    assert!(!name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']));
    let _ = conf.prev_result();
    if let Ok(Some(valid)) = conf.valid_attachments() {
        assert!(
            valid
                .containers()
                .all(|container| valid.has_container(container))
        );
    }
    let args = Args::default();
    let _ = Ipam::parse(&conf, &[], &args);
    let _ = IpamLeases::parse(&conf, &[]);
    let _ = PortmapConfig::parse(&conf.root());
    let _ = FirewallConfig::parse(&conf.root());
    let tuning = TuningConfig::parse(&conf, &args);
    if let Ok(sysctls) = tuning.and_then(|tuning| tuning.sysctls(&attachment().interface)) {
        let mut paths = sysctls.iter().map(|(sysctl, _)| sysctl.path());
        assert!(paths.all(|path| path.starts_with("net/") && !path.contains("..")));
    }
    let addresses = Config::parse(&conf, &args).map(|config| allocate(&config));
    let Ok(bridge) = BridgeConfig::parse(&conf, &args) else {
        return;
    };
    let mtu = match bridge.mtu {
        Mtu::Bytes(mtu) => Some(mtu),
        Mtu::Kernel | Mtu::Uplink => None,
    };
    assert!(mtu.is_none_or(|mtu| (68..=65535).contains(&mtu)));
    assert!(bridge.mac.is_none_or(|mac| mac.is_assignable()));
    let input = PlanInput {
        config: &bridge,
        mtu,
        network: &conf.name,
        attachment: attachment(),
        pod: Some(&"ü".repeat(200)),
        spoof_check: None,
    };
    if let Ok(plan) = Plan::new(input, addresses.unwrap_or_default()) {
        check_plan(plan, &bridge, conf.version);
    }
});

/// Allocates the first addresses of each range set, as consecutive ADDs do.
fn allocate(config: &Config) -> Lease {
    let mut ips = Vec::new();
    for pool in &config.pools {
        if let Some(requested) = pool.requested {
            assert!(
                pool.set.range_of(requested).is_some() && !config.gateways.contains(&requested)
            );
        }
        let mut taken = HashSet::new();
        let mut last = pool.requested;
        for round in 0..3 {
            let next = next_free(&pool.set, last, &config.gateways, |ip| taken.contains(&ip));
            let Some((range, address)) = next else {
                assert!(round > 0, "a valid set has a free address: {}", pool.set);
                break;
            };
            assert!(range.contains(address) && !range.is_edge(address));
            assert!(!config.gateways.contains(&address));
            let cidr = range.with_prefix(address);
            assert_eq!(cidr.to_string().parse(), Ok(cidr));
            assert!(cidr.contains(range.gateway()) && cidr.contains(range.last()));
            assert!(taken.insert(address));
            last = Some(address);
            if round == 0 {
                ips.push(IpConfig {
                    interface: None,
                    address: cidr,
                    gateway: Some(range.gateway()),
                });
            }
        }
    }
    let distinct: HashSet<_> = ips.iter().map(|ip| ip.address.address()).collect();
    assert_eq!(distinct.len(), ips.len(), "sets overlap");
    Lease {
        ips,
        routes: config.routes.clone(),
        ..Lease::default()
    }
}

fn check_plan(plan: Plan, config: &BridgeConfig, version: Version) {
    assert_eq!(plan.veth.host.as_str().len(), 15);
    assert!(plan.veth.mac.is_assignable());
    assert!(plan.veth.alias.len() <= 255);
    for route in &plan.veth.routes {
        assert_eq!(route.dst.to_string().parse(), Ok(route.dst));
    }
    let observed = ObservedLinks {
        bridge_mac: None,
        gateway_mac: None,
        host_mac: Some(plan.veth.mac),
    };
    let result = plan.into_result(&config.bridge, &observed, "/run/netns/x");
    let Ok(document) = result.to_document(version) else {
        assert_eq!(version.schema(), Schema::V0_1);
        return;
    };
    let value = json::parse("result", document.as_bytes()).expect("valid JSON");
    let again = AddResult::parse(&JsonCursor::root("result", &value), Version::NEWEST).unwrap();
    if version.schema() == Schema::V1 {
        assert_eq!(again, result);
    }
    assert_eq!(again.to_document(version).unwrap(), document);
}

fn attachment() -> &'static Attachment {
    static ATTACHMENT: OnceLock<Attachment> = OnceLock::new();
    ATTACHMENT.get_or_init(|| Attachment {
        container: "c1".parse().unwrap(),
        interface: "eth0".parse().unwrap(),
    })
}
