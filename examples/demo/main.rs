//! The plugins at work: a node, two pods and the world beyond, in private namespaces that vanish at the end.
//!
//! `cargo run --release --example demo` needs neither root nor any program but what cargo builds. It ends with status 0
//! only when everything is as promised.

mod binary;
mod facts;
mod picture;
mod runtime;
mod scene;
mod show;

use std::net::IpAddr;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use facts::MasqueradeEntry;
use gangplank_test_support::namespace::{self, Namespace};
use picture::Picture;
use runtime::{Attached, Network};
use scene::Scene;
use show::{bold, done, millis, note, section};

/// What a user would put into /etc/cni/net.d.
const CONFIGURATION: &str = include_str!("../10-gangplank.conflist");

/// Nothing below takes a tenth of this, unless it hangs.
const LIMIT: Duration = Duration::from_secs(90);

/// Why the demo ends early.
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
    // Before there is a second thread: only a process of one thread may enter a user namespace.
    let user = scene::become_root()?;
    let start = Instant::now();
    thread::spawn(|| {
        thread::sleep(LIMIT);
        eprintln!("\ndemo: not done after {} s: given up", LIMIT.as_secs());
        std::process::exit(1);
    });
    let scene = Scene::new()?;
    println!("{}", bold("gangplank at work"));
    note(&format!(
        "In private namespaces{user}: nothing of this touches your network, and all of it vanishes at the end."
    ));

    section("Install");
    for line in scene.install(&binary)? {
        note(&line);
    }
    let pods = [scene.node.pod("web")?, scene.node.pod("db")?];
    let mut network = Network::from_list(&scene.node, CONFIGURATION)?;
    let untouched = MasqueradeEntry::of(&scene.node, network.name())?;
    let attached = add(&mut network, &pods)?;
    println!();
    let picture = Picture::of(&scene, &network, &pods, &attached)?;
    print!("{picture}");
    packets(&scene, &network, &pods, &attached)?;
    check(&network, &pods, &attached)?;
    delete(&network, &pods, &attached)?;
    nothing_left(&scene, &network, untouched)?;
    println!(
        "\n{} in {} ms.",
        bold("Everything is as promised"),
        start.elapsed().as_millis()
    );
    Ok(())
}

/// Attaches all pods; where the node cannot masquerade, without that.
fn add(network: &mut Network, pods: &[Namespace]) -> Result<Vec<Attached>, Failure> {
    section("ADD: a runtime attaches two pods");
    note(&format!(
        "with the configuration examples/10-gangplank.conflist, network {:?}",
        network.name()
    ));
    let mut attached = Vec::new();
    for pod in pods {
        let answer = match network.add(pod) {
            // Its room in the product signs the refusal.
            Err(refusal) if refusal.msg.starts_with("masquerade:") => {
                note(&format!("ipMasq cannot be had on this machine: {refusal}"));
                note("so here is the rest, with ipMasq set to false");
                network.set("ipMasq", false);
                network.add(pod)
            }
            answer => answer,
        };
        let answer = answer.map_err(|refusal| format!("ADD of {}: {refusal}", pod.name))?;
        let (name, address) = (&pod.name, answer.address);
        done(&format!("{name:<4} has {address}"), &millis(answer.took));
        attached.push(answer);
    }
    Ok(attached)
}

/// Lets packets flow, and answers come back.
fn packets(
    scene: &Scene,
    network: &Network,
    pods: &[Namespace],
    attached: &[Attached],
) -> Result<(), Failure> {
    section("Packets: each is answered");
    let [web, db] = [0, 1].map(|pod: usize| attached[pod].address.address());
    let (node, world) = (&scene.node, &scene.world);
    let gateway = attached[0].gateway;
    let (node_address, world_address) = (Scene::node_address(), Scene::world_address());
    exchange(&pods[0], &pods[1], db, web)?;
    exchange(&pods[1], &pods[0], web, db)?;
    exchange(&pods[0], node, node_address, web)?;
    exchange(node, &pods[1], db, gateway)?;
    if network.masquerades() {
        exchange(&pods[0], world, world_address, node_address)?;
        exchange(&pods[1], world, world_address, node_address)?;
        note("The world has no route to the pods: it sees, and answers, the node.");
    } else {
        note("Beyond the node nobody knows a way to the pods: that needs ipMasq, or routes.");
    }
    Ok(())
}

/// One packet there and back; the receiver must see it come from `source`.
fn exchange(
    from: &Namespace,
    place: &Namespace,
    to: IpAddr,
    source: IpAddr,
) -> Result<(), Failure> {
    let way = format!("{} → {}", from.name, place.name);
    let exchange = from
        .exchange(place, to)
        .map_err(|cause| format!("{way}: no answer from {to}: {cause}"))?;
    if exchange.seen_as != source {
        let seen = exchange.seen_as;
        return Err(format!("{way}: {to} sees {seen} as the source, not {source}").into());
    }
    done(
        &format!("{way:<12}  to {to:<12}  seen as {source:<12}"),
        &millis(exchange.took),
    );
    Ok(())
}

fn check(network: &Network, pods: &[Namespace], attached: &[Attached]) -> Result<(), Failure> {
    section("CHECK: are they still as ADD made them?");
    for (pod, attached) in pods.iter().zip(attached) {
        let took = network
            .check(pod, attached)
            .map_err(|refusal| format!("CHECK of {}: {refusal}", pod.name))?;
        done(&format!("{:<4}", pod.name), &millis(took));
    }
    Ok(())
}

/// Detaches the pods: the first as a runtime does on a good day, the others with no namespace to look into.
fn delete(network: &Network, pods: &[Namespace], attached: &[Attached]) -> Result<(), Failure> {
    section("DEL: they go");
    for (index, (pod, attached)) in pods.iter().zip(attached).enumerate() {
        let (took, how) = match index {
            0 => (network.del(pod, attached), "as on a good day"),
            _ => (
                network.del_blind(pod),
                "told neither namespace nor result, as after a crash",
            ),
        };
        let took = took.map_err(|refusal| format!("DEL of {}: {refusal}", pod.name))?;
        done(&format!("{:<4} {how:<51}", pod.name), &millis(took));
    }
    Ok(())
}

/// Compares with what stood before the first ADD.
fn nothing_left(scene: &Scene, network: &Network, before: MasqueradeEntry) -> Result<(), Failure> {
    section("What is left");
    let after = MasqueradeEntry::of(&scene.node, network.name())?;
    let bridge = network.bridge().to_owned();
    let mut expected = before;
    expected.links.insert(bridge.clone());
    if after != expected {
        return Err(format!("DEL left something: {after:?}, not {expected:?}").into());
    }
    done("links: no veth; the bridge is shared and stays", "");
    done("leases: none", "");
    match &after.rules {
        Some(_) => done("rules of the nat table: none", ""),
        None => note("rules: there were none to begin with"),
    }
    Ok(())
}
