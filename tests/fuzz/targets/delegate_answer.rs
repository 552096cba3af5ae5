//! The output of another IPAM plugin: a result becomes a lease and a plan, an error document an error.

#![no_main]

use std::sync::OnceLock;

use gangplank::cni::args::Args;
use gangplank::cni::conf::NetConf;
use gangplank::cni::names::Attachment;
use gangplank::cni::result::AddResult;
use gangplank::delegate::{Delegate, Role, parse_error};
use gangplank::ipam::delegate::lease;
use gangplank::plugins::bridge::config::BridgeConfig;
use gangplank::plugins::bridge::plan::{Plan, PlanInput};
use libfuzzer_sys::fuzz_target;

struct Fixture {
    delegate: Delegate,
    config: BridgeConfig,
    conf: NetConf,
    attachment: Attachment,
}

fuzz_target!(|data: &[u8]| {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    let Fixture {
        delegate,
        config,
        conf,
        attachment,
    } = FIXTURE.get_or_init(fixture);
    if let Some(error) = parse_error(data) {
        let _ = error.to_string();
    }
    let lease = match delegate.parse_result(data).and_then(lease) {
        Ok(lease) => lease,
        Err(error) => {
            assert_eq!(error.code.0, 999);
            assert!(error.msg.len() < 16 << 10, "the message is bounded");
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
    assert!(plan.veth.mac.is_assignable() && plan.veth.addresses.len() == lease.ips.len());
    for gateway in &plan.gateways {
        assert_eq!(gateway.to_string().parse(), Ok(*gateway));
    }
    AddResult::from(lease)
        .to_document(conf.version)
        .expect("a document");
});

fn fixture() -> Fixture {
    let conf = br#"{"cniVersion":"1.0.0","name":"n","type":"bridge","isDefaultGateway":true,"ipam":{"type":"x"}}"#;
    let conf = NetConf::parse(conf.to_vec()).unwrap();
    Fixture {
        delegate: Delegate::new(Role::Ipam, "x", &conf, &[]),
        config: BridgeConfig::parse(&conf, &Args::default()).unwrap(),
        conf,
        attachment: Attachment {
            container: "c1".parse().unwrap(),
            interface: "eth0".parse().unwrap(),
        },
    }
}
