//! Rates and round trips of a pod with limited bandwidth, with real flows to the pod.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::support::flows::{Flow, RoundTrips, bandwidth, connected_pod};
use crate::support::{Node, Pod, Protocol, plugins_of_go};

pub const HEADER: &str = "\
| limit | plugin | Mbit burst | first second | UDP | TCP | idle | under TCP load | in a UDP flood |
|---|---|---|---|---|---|---|---|---|";

/// In Mbit/s; 0 for none.
const RATES: [u64; 5] = [1, 10, 100, 1000, 0];

const DURATION: Duration = Duration::from_secs(3);

/// What runtimes pass if only a rate is given.
const BURST_OF_RUNTIMES: u64 = 2_147_483_647;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Plugin {
    Go,
    Gangplank,
    LowLatency,
}

/// A row: rates in Mbit/s, average and longest round trips.
pub struct Measurement {
    rate: u64,
    plugin: Plugin,
    burst: u64,
    flows: [Flow; 2],
    round_trips: [RoundTrips; 3],
}

/// Measures each limit. `go` is the directory of the Go plugins.
pub fn measure(go: &Path) -> impl Iterator<Item = Measurement> {
    let rows = RATES.into_iter().flat_map(|rate| {
        let tenth = rate * 100_000;
        let plugins = [
            (Plugin::Go, BURST_OF_RUNTIMES),
            (Plugin::Go, tenth),
            (Plugin::Gangplank, tenth),
            (Plugin::LowLatency, BURST_OF_RUNTIMES),
        ];
        let count = if rate == 0 { 1 } else { plugins.len() };
        let row = move |(plugin, burst)| (rate, plugin, burst);
        plugins.into_iter().take(count).map(row)
    });
    rows.map(|(rate, plugin, burst)| Measurement::take(go, (rate, plugin, burst)))
}

impl Measurement {
    fn take(go: &Path, (rate, plugin, burst): (u64, Plugin, u64)) -> Measurement {
        let new = || {
            let node = Node::new("bench");
            let pod = connected_pod(&node, "a");
            for name in plugins_of_go().filter(|_| plugin == Plugin::Go) {
                node.install_go_plugin_of(go, name);
            }
            add(&node, &pod, (rate, plugin, burst));
            (node, pod)
        };
        let (node, pod) = new();
        pod.reaches("10.1.0.1");
        let idle = node.round_trips("10.1.0.2", 100);
        let [(udp, in_udp), (tcp, in_tcp)] = [Protocol::Udp, Protocol::Tcp].map(|protocol| {
            let (node, pod) = new();
            let from = &*node;
            std::thread::scope(|scope| {
                let to = (&*pod, "10.1.0.2:5001".parse().expect("an address"));
                let flow = scope.spawn(move || from.flow(protocol, to, DURATION));
                std::thread::sleep(DURATION / 2);
                let round_trips = node.round_trips("10.1.0.2", 100);
                (flow.join().expect("a flow"), round_trips)
            })
        });
        Measurement {
            rate,
            plugin,
            burst,
            flows: [udp, tcp],
            round_trips: [idle, in_tcp, in_udp],
        }
    }
}

fn add(node: &Node, pod: &Pod, (rate, plugin, burst): (u64, Plugin, u64)) {
    if rate == 0 {
        return;
    }
    let rate = rate * 1_000_000;
    let config = bandwidth(
        pod,
        &json!({ "ingressRate": rate, "ingressBurst": burst, "lowLatency": plugin == Plugin::LowLatency }),
    );
    let name = if plugin == Plugin::Go {
        "go-bandwidth"
    } else {
        "bandwidth"
    };
    node.cni(name)
        .config(&config)
        .verb("ADD")
        .pod(pod)
        .run()
        .ok();
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [udp, tcp] = &self.flows;
        let first = udp.rate(Duration::ZERO, Duration::from_secs(1));
        let plugin = match self.plugin {
            _ if self.rate == 0 => "no limit",
            Plugin::Go => "Go",
            Plugin::Gangplank => "gangplank",
            Plugin::LowLatency => "gangplank, lowLatency",
        };
        let rate = |rate: f64| format!("{:.2}", rate / 1e6);
        write!(
            f,
            "| {} | {plugin} | {} | {} | {} | {} |",
            self.rate,
            rate(self.burst as f64),
            rate(first),
            rate(udp.steady_rate()),
            rate(tcp.steady_rate())
        )?;
        for it in self.round_trips {
            let ms = |time: Duration| time.as_secs_f64() * 1000.0;
            let times = format!("{:.2}, {:.2}", ms(it.average), ms(it.longest));
            match it.lost {
                0.0 => write!(f, " {times} |")?,
                100.0 => write!(f, " no reply |")?,
                lost => write!(f, " {times}, {lost:.0} % lost |")?,
            }
        }
        Ok(())
    }
}
