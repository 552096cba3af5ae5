//! Demo: attaches two pods to a node, sends packets, and detaches the pods, in private namespaces.
//!
//! `cargo run --release --example demo` needs neither root nor other programs. The exit status is 0 if all checks pass.

mod binary;
mod diagram;
mod output;
mod runtime;
mod state;
mod topology;

use std::net::IpAddr;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use diagram::Diagram;
use gangplank_test_support::namespace::{self, Namespace};
use output::{bold, heading, millis, note, passed};
use runtime::{Attached, Network};
use state::NodeState;
use topology::Topology;

/// The network configuration, as in /etc/cni/net.d.
const CONFIGURATION: &str = include_str!("../10-gangplank.conflist");

/// The time limit of the demo, which takes a tenth of it.
const LIMIT: Duration = Duration::from_secs(90);

/// The error that ends the demo.
type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    match demonstrate() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("\ndemo: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn demonstrate() -> Result<(), Failure> {
    let binary = binary::find_or_build()?;
    // Before a second thread exists: only a single-threaded process may enter a user namespace.
    let user = topology::become_root()?;
    let start = Instant::now();
    thread::spawn(|| {
        thread::sleep(LIMIT);
        eprintln!("\ndemo: timed out after {} s", LIMIT.as_secs());
        std::process::exit(1);
    });
    let topology = Topology::new()?;
    println!("{}", bold("gangplank demo"));
    note(&format!(
        "In private namespaces{user}, without changes to the network of this machine."
    ));

    heading("Install");
    for line in topology.install(&binary)? {
        note(&line);
    }
    let pods = [topology.node.pod("web")?, topology.node.pod("db")?];
    let mut network = Network::from_list(&topology.node, CONFIGURATION)?;
    let before = NodeState::observe(&topology.node, network.name())?;
    let attached = add(&mut network, &pods)?;
    println!();
    let diagram = Diagram::of(&topology, &network, &pods, &attached)?;
    print!("{diagram}");
    packets(&topology, &network, &pods, &attached)?;
    check(&network, &pods, &attached)?;
    delete(&network, &pods, &attached)?;
    nothing_left(&topology, &network, before)?;
    println!(
        "\n{} in {} ms.",
        bold("All checks passed"),
        start.elapsed().as_millis()
    );
    Ok(())
}

/// Attaches all pods; without masquerading if the node does not support it.
fn add(network: &mut Network, pods: &[Namespace]) -> Result<Vec<Attached>, Failure> {
    heading("ADD: a runtime attaches two pods");
    note(&format!(
        "with the configuration examples/10-gangplank.conflist, network {:?}",
        network.name()
    ));
    let mut attached = Vec::new();
    for pod in pods {
        let added = match network.add(pod) {
            Err(error) if error.msg.starts_with("masquerade:") => {
                note(&format!("this machine does not support ipMasq: {error}"));
                note("continuing with ipMasq set to false");
                network.set("ipMasq", false);
                network.add(pod)
            }
            added => added,
        };
        let added = added.map_err(|error| format!("ADD of {}: {error}", pod.name))?;
        let (name, address) = (&pod.name, added.address);
        passed(&format!("{name:<4} has {address}"), &millis(added.took));
        attached.push(added);
    }
    Ok(attached)
}

/// Sends a packet between each two hosts, and a reply.
fn packets(
    topology: &Topology,
    network: &Network,
    pods: &[Namespace],
    attached: &[Attached],
) -> Result<(), Failure> {
    heading("Packets: request and reply");
    let [web, db] = [0, 1].map(|pod: usize| attached[pod].address.address());
    let (node, world) = (&topology.node, &topology.world);
    let gateway = attached[0].gateway;
    let (node_address, world_address) = (Topology::node_address(), Topology::world_address());
    exchange(&pods[0], &pods[1], db, web)?;
    exchange(&pods[1], &pods[0], web, db)?;
    exchange(&pods[0], node, node_address, web)?;
    exchange(node, &pods[1], db, gateway)?;
    if network.masquerades() {
        exchange(&pods[0], world, world_address, node_address)?;
        exchange(&pods[1], world, world_address, node_address)?;
        note("world has no route to the pods: it replies to the address of the node.");
    } else {
        note("Other hosts have no route to the pods: this needs ipMasq or routes.");
    }
    Ok(())
}

/// Sends a packet and a reply. Fails unless the receiver sees the packet with the source address `source`.
fn exchange(
    from: &Namespace,
    receiver: &Namespace,
    to: IpAddr,
    source: IpAddr,
) -> Result<(), Failure> {
    let path = format!("{} → {}", from.name, receiver.name);
    let exchange = from
        .exchange(receiver, to)
        .map_err(|cause| format!("{path}: no reply from {to}: {cause}"))?;
    if exchange.seen_as != source {
        let seen = exchange.seen_as;
        return Err(format!("{path}: {to} sees {seen} as the source, not {source}").into());
    }
    passed(
        &format!("{path:<12}  to {to:<12}  seen as {source:<12}"),
        &millis(exchange.took),
    );
    Ok(())
}

fn check(network: &Network, pods: &[Namespace], attached: &[Attached]) -> Result<(), Failure> {
    heading("CHECK: compare the pods with the result of ADD");
    for (pod, attached) in pods.iter().zip(attached) {
        let took = network
            .check(pod, attached)
            .map_err(|error| format!("CHECK of {}: {error}", pod.name))?;
        passed(&format!("{:<4}", pod.name), &millis(took));
    }
    Ok(())
}

/// Detaches the pods: the first with its network namespace and result, the others without.
fn delete(network: &Network, pods: &[Namespace], attached: &[Attached]) -> Result<(), Failure> {
    heading("DEL: detach the pods");
    for (index, (pod, attached)) in pods.iter().zip(attached).enumerate() {
        let (took, how) = match index {
            0 => (
                network.del(pod, attached),
                "with network namespace and result",
            ),
            _ => (
                network.del_without_netns(pod),
                "without network namespace and result",
            ),
        };
        let took = took.map_err(|error| format!("DEL of {}: {error}", pod.name))?;
        passed(&format!("{:<4} {how:<37}", pod.name), &millis(took));
    }
    Ok(())
}

/// Compares the node with its state before the first ADD, to which only the bridge was added.
fn nothing_left(topology: &Topology, network: &Network, before: NodeState) -> Result<(), Failure> {
    heading("Resources left on the node");
    let after = NodeState::observe(&topology.node, network.name())?;
    let bridge = network.bridge().to_owned();
    let mut expected = before;
    expected.links.insert(bridge.clone());
    if after != expected {
        return Err(
            format!("the node has {after:?} after DEL, but should have {expected:?}").into(),
        );
    }
    passed("links: only the shared bridge", "");
    passed("leases: none", "");
    match &after.rules {
        Some(_) => passed("rules of the nat table: none", ""),
        None => note("rules of the nat table: iptables is not installed"),
    }
    Ok(())
}
