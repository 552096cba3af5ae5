//! What another IPAM plugin prints: a result becomes a lease that a plan can be made of, an error an error.

#![no_main]

use std::sync::OnceLock;

use gangplank::plugins::bridge::config::BridgeConfig;
use gangplank::plugins::bridge::plan::{Plan, PlanInput};
use gangplank::cni::conf::NetConf;
use gangplank::cni::args::Args;
use gangplank::cni::names::Attachment;
use gangplank::cni::result::AddResult;
use gangplank::ipam::delegate::{Delegate, parse_error};
use libfuzzer_sys::fuzz_target;

struct Setting {
    delegate: Delegate,
    config: BridgeConfig,
    conf: NetConf,
    attachment: Attachment,
}

fuzz_target!(|data: &[u8]| {
    static SETTING: OnceLock<Setting> = OnceLock::new();
    let Setting { delegate, config, conf, attachment } = SETTING.get_or_init(setting);
    if let Some(error) = parse_error(data) {
        let _ = error.to_string();
    }
    let lease = match delegate.parse_result(data) {
        Ok(lease) => lease,
        Err(error) => {
            assert_eq!(error.code.0, 999);
            assert!(error.msg.len() < 16 << 10, "a message is no dump");
            return;
        }
    };
    assert!(!lease.ips.is_empty() && lease.ips.iter().all(|ip| ip.interface.is_none()));
    let input = PlanInput {
        config,
        mtu: None,
        network: &conf.name,
        attachment,
        pod: None,
        spoof_check: None,
    };
    let Ok(plan) = Plan::new(input, lease.clone()) else {
        return;
    };
    assert!(plan.mac.is_assignable() && plan.addresses().len() == lease.ips.len());
    for gateway in &plan.gateways {
        assert_eq!(gateway.to_string().parse(), Ok(*gateway));
    }
    AddResult::from(lease).to_document(conf.version).expect("it has an address");
});

fn setting() -> Setting {
    let conf = br#"{"cniVersion":"1.0.0","name":"n","type":"bridge","isDefaultGateway":true,"ipam":{"type":"x"}}"#;
    let conf = NetConf::parse(conf.to_vec()).unwrap();
    Setting {
        delegate: Delegate::new("x", &conf, &[]),
        config: BridgeConfig::parse(&conf, &Args::default()).unwrap(),
        conf,
        attachment: Attachment {
            container: "c1".parse().unwrap(),
            interface: "eth0".parse().unwrap(),
        },
    }
}
