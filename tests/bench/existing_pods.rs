//! Simulates pods that are already on a node: their leases and rules.
//! They have no links: a bridge has at most 1,023 ports (BR_MAX_PORTS), and links are looked up by name.

use std::fmt::Write;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::support::Node;

/// The first address, far above those of the measured pods.
const FIRST: u32 = 0x0a40_8000;

/// The masquerade entries of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// A chain and a jump in the nat table, added with this program.
    Rules(&'static str),
    /// An element of gangplank's map.
    Elements,
    /// A mapped port, added by the plugin itself.
    Mappings,
}

/// Adds `count` leases of the network `bench` and as many masquerade entries.
/// gangplank's table must exist.
pub fn create(node: &Node, count: usize, fills: &[Fill]) {
    node.inside(|| {
        let leases = "/var/lib/cni/networks/bench";
        fs::create_dir_all(leases).expect("a lease directory");
        for index in 0..count {
            let lease = format!("{leases}/{}", Ipv4Addr::from(FIRST + index as u32));
            fs::write(lease, format!("existing{index}\r\neth0")).expect("a lease");
        }
    });
    for fill in fills.iter().filter(|_| count > 0) {
        let (program, script) = match fill {
            Fill::Rules(restore) if restore.starts_with("ip6") => (*restore, rules(count, v6)),
            Fill::Rules(restore) => (*restore, rules(count, v4)),
            Fill::Elements => ("nft", elements(count)),
            Fill::Mappings => unreachable!("added by the plugin"),
        };
        let arguments = match fill {
            Fill::Rules(_) => "--noflush",
            Fill::Elements | Fill::Mappings => "-f -",
        };
        node.write("/run/existing", &script);
        node.write(
            "/run/existing.sh",
            &format!("{program} {arguments} < /run/existing"),
        );
        node.run("sh /run/existing.sh");
    }
}

/// Elements in gangplank's format.
fn elements(count: usize) -> String {
    let mut script = String::from("add element inet gangplank pods4 {\n");
    for index in 0..count {
        let address = Ipv4Addr::from(FIRST + index as u32);
        let key = format!("{:016x}-{index:016x}", 0x00c0_ffee);
        writeln!(
            script,
            "{address} comment \"{key}, net: bench, if: eth0, id: existing{index}\" : goto net-bench,"
        )
        .expect("writing to a string");
    }
    script + "}\n"
}

/// The address of a pod, its subnet, and the multicast range that is not masqueraded.
type Addresses = (String, &'static str, &'static str);

fn v4(index: u32) -> Addresses {
    (
        format!("{}/32", Ipv4Addr::from(FIRST + index)),
        "10.64.0.0/16",
        "224.0.0.0/4",
    )
}

fn v6(index: u32) -> Addresses {
    let address = Ipv6Addr::new(0xfd64, 0, 0, 0, 0, 1, (index >> 16) as u16, index as u16);
    (format!("{address}/128"), "fd64::/64", "ff00::/8")
}

/// Rules in the format of both implementations.
fn rules(count: usize, addresses: fn(u32) -> Addresses) -> String {
    let mut script = String::from("*nat\n");
    for index in 0..count {
        let chain = format!("CNI-{index:024x}");
        let comment =
            format!("-m comment --comment \"name: \\\"bench\\\" id: \\\"existing{index}\\\"\"");
        let (address, subnet, multicast) = addresses(index as u32);
        writeln!(
            script,
            "-N {chain}\n\
             -A {chain} -d {subnet} {comment} -j ACCEPT\n\
             -A {chain} ! -d {multicast} {comment} -j MASQUERADE\n\
             -A POSTROUTING -s {address} {comment} -j {chain}"
        )
        .expect("writing to a string");
    }
    script + "COMMIT\n"
}
