//! Pods that a node has already, as far as another pod's ADD or DEL meets them: their leases and their rules.
//!
//! They have no links: a bridge takes 1,023 ports (BR_MAX_PORTS), and links are found by name, not by search.

use std::fmt::Write;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::support::Node;

/// Where a case's own pods begin is far below.
const FIRST: u32 = 0x0a40_8000;

/// What a masqueraded pod has in the kernel.
#[derive(Clone, Copy, Debug)]
pub enum Fill {
    /// A chain and a jump of a family's nat table, put there by this program.
    Rules(&'static str),
    /// An element of our map.
    Elements,
}

/// Gives a node `count` leases of the network `bench`, and as many pods' masquerading.
///
/// Of our table a first pod must have made what all networks share.
pub fn gather(node: &Node, count: usize, fills: &[Fill]) {
    node.inside(|| {
        let leases = "/var/lib/cni/networks/bench";
        fs::create_dir_all(leases).expect("a place for leases");
        for index in 0..count {
            let lease = format!("{leases}/{}", Ipv4Addr::from(FIRST + index as u32));
            fs::write(lease, format!("crowd{index}\r\neth0")).expect("a lease");
        }
    });
    for fill in fills.iter().filter(|_| count > 0) {
        let (program, script) = match fill {
            Fill::Rules(restore) if restore.starts_with("ip6") => (*restore, rules(count, v6)),
            Fill::Rules(restore) => (*restore, rules(count, v4)),
            Fill::Elements => ("nft", elements(count)),
        };
        let arguments = match fill {
            Fill::Rules(_) => "--noflush",
            Fill::Elements => "-f -",
        };
        node.write("/run/crowd", &script);
        node.write(
            "/run/crowd.sh",
            &format!("{program} {arguments} < /run/crowd"),
        );
        node.run("sh /run/crowd.sh");
    }
}

/// Elements as our plugin makes them; the hashes in the comments are as long as its.
fn elements(count: usize) -> String {
    let mut script = String::from("add element inet gangplank pods4 {\n");
    for index in 0..count {
        let address = Ipv4Addr::from(FIRST + index as u32);
        let key = format!("{:016x}-{index:016x}", 0x00c0_ffee);
        writeln!(
            script,
            "{address} comment \"{key}, net: bench, if: eth0, id: crowd{index}\" : goto net-bench,"
        )
        .expect("a string takes all");
    }
    script + "}\n"
}

/// The address of a pod, its subnet, and what is never masqueraded.
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

/// The rules as both plugins write them; the chains' names are as long as theirs.
fn rules(count: usize, addresses: fn(u32) -> Addresses) -> String {
    let mut script = String::from("*nat\n");
    for index in 0..count {
        let chain = format!("CNI-{index:024x}");
        let comment =
            format!("-m comment --comment \"name: \\\"bench\\\" id: \\\"crowd{index}\\\"\"");
        let (address, subnet, multicast) = addresses(index as u32);
        writeln!(
            script,
            "-N {chain}\n\
             -A {chain} -d {subnet} {comment} -j ACCEPT\n\
             -A {chain} ! -d {multicast} {comment} -j MASQUERADE\n\
             -A POSTROUTING -s {address} {comment} -j {chain}"
        )
        .expect("a string takes all");
    }
    script + "COMMIT\n"
}
