//! Benchmark of whole plugin processes: gangplank and other plugins alternately, each on its own node.
//! `tests/bench/run` runs it on the release binary. It has no pass criterion.

use gangplank_test_support as support;

mod bandwidth;
mod baseline;
mod cases;
mod chain_cases;
mod connections;
mod existing_pods;
mod mapped_connections;
mod memory;
mod report;
mod timed;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use cases::{Case, Setting};
use existing_pods::Fill;
use report::Row;
use serde_json::Value;
use support::{Node, Pod};
use timed::Call;

const HELP: &str = "\
Compares gangplank with other CNI plugins: whole processes, in alternating pairs.

Usage: tests/bench/run [--runs N] [--pods N,N,…] [--against DIR] [CASE …]

  --runs N        measured pairs per row (25)
  --pods N,N,…    numbers of pods already on the node (0,500,4000; host-local: 0,1000,10000)
  --against DIR   the plugins to compare with (/usr/lib/cni)
  CASE            only cases whose name contains one of these words; besides the networks and chains:
                  \"baseline\" (bare netlink requests), \"concurrent\" (100 ADDs, 10 at a time),
                  \"memory\" (peak of an ADD), \"connections\" (new connections through masquerade),
                  \"mapped-ports\" (new connections through a mapped port),
                  \"bandwidth\" (rates and round trips with limits)
";

struct Options {
    runs: usize,
    pods: Option<Vec<usize>>,
    against: PathBuf,
    words: Vec<String>,
}

fn main() {
    if let Ok(verb) = std::env::var(baseline::VERB_VARIABLE) {
        return baseline::run(&verb);
    }
    let options = parse(std::env::args().skip(1)).unwrap_or_else(|wrong| {
        eprintln!("{wrong}\n\n{HELP}");
        std::process::exit(2);
    });
    if !support::require(&["iptables", "nft", "strace"]) {
        std::process::exit(1);
    }
    println!("{}\n", report::machine(&options.against));
    println!("{}", Row::HEADER);
    let mut rows = Vec::new();
    let mut show = |row: Row| {
        println!("{row}");
        rows.push(row);
    };
    let cases = cases::all();
    for case in cases.iter().filter(|case| options.wants(case.name)) {
        for pods in options.pods.as_deref().unwrap_or(case.pod_counts) {
            measure(case, *pods, &options)
                .into_iter()
                .for_each(&mut show);
        }
    }
    let gateway = cases
        .iter()
        .find(|case| case.name == "gateway")
        .expect("a case named gateway");
    if options.wants("baseline") {
        measure_baseline(gateway, &options)
            .into_iter()
            .for_each(&mut show);
    }
    if options.wants("concurrent") {
        for case in cases.iter().filter(|case| {
            case.name == "gateway"
                || case.name.starts_with("masquerade-") && case.name.contains("nft")
        }) {
            show(measure_concurrent_adds(case, &options));
        }
    }
    if options.wants("memory") {
        let of_bridge = |case: &&Case| case.plugins == ["bridge"];
        println!("\n{}", memory::HEADER);
        for case in cases.iter().filter(of_bridge) {
            println!("{}", memory::measure(case, &options.against));
        }
    }
    if options.wants("connections") {
        println!("\n{}", connections::HEADER);
        for line in connections::measure(&cases) {
            println!("{line}");
        }
    }
    if options.wants("mapped-ports") {
        println!("\n{}", mapped_connections::HEADER);
        for line in mapped_connections::measure(&cases, &options.against) {
            println!("{line}");
        }
    }
    if options.wants("bandwidth") {
        println!("\n{}", bandwidth::HEADER);
        for line in bandwidth::measure(&options.against) {
            println!("{line}");
        }
    }
    if !rows.is_empty() {
        println!("\n{}\n{}", report::summary(&rows), report::chart(&rows));
    }
}

fn parse(args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        runs: 25,
        pods: None,
        against: "/usr/lib/cni".into(),
        words: Vec::new(),
    };
    let mut args = args;
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        let number = |text: &str| {
            text.parse()
                .map_err(|_| format!("{text:?} is not a number"))
        };
        match arg.as_str() {
            "--runs" => options.runs = number(&value()?)?,
            "--pods" => {
                options.pods = Some(value()?.split(',').map(number).collect::<Result<_, _>>()?)
            }
            "--against" => options.against = value()?.into(),
            "--help" | "-h" => {
                print!("{HELP}");
                std::process::exit(0);
            }
            word if !word.starts_with('-') => options.words.push(word.to_owned()),
            other => return Err(format!("unknown option {other}")),
        }
    }
    Ok(options)
}

impl Options {
    /// Whether a name contains one of the words; true without words.
    fn wants(&self, name: &str) -> bool {
        self.words.is_empty() || self.words.iter().any(|word| name.contains(word.as_str()))
    }
}

/// A node for one set of plugins.
struct Side {
    node: Node,
    setting: Setting,
    pods: Vec<Pod>,
    results: Vec<Value>,
}

impl Side {
    fn new(case: &Case, plugins: Option<&PathBuf>, existing: usize, pods: usize) -> Side {
        let node = Node::new("bench");
        case.prepare(&node);
        let side = Side {
            setting: case.setting(plugins),
            pods: (0..pods)
                .map(|index| node.pod(&format!("pod{index}")))
                .collect(),
            results: Vec::new(),
            node,
        };
        let [ours, theirs] = case.fills;
        let fills = if plugins.is_none() { ours } else { theirs };
        if fills.iter().any(|fill| matches!(fill, Fill::Elements)) {
            // It creates the table, and stays attached.
            let first = side.node.pod("first");
            timed::call(&side.node, &side.setting.first_add(&first, 0));
        }
        if fills.contains(&Fill::Mappings) {
            chain_cases::map_ports(&side, existing);
            return side;
        }
        existing_pods::create(&side.node, existing, fills);
        side
    }

    /// Calls the plugins for the pod with this index. The result of ADD is kept for the later verbs.
    fn call<T: std::iter::Sum>(
        &mut self,
        verb: &str,
        index: usize,
        how: impl Fn(&Node, &Call) -> (T, String),
    ) -> T {
        let pod = (&self.pods[index], index);
        let how = |call: &Call| how(&self.node, call);
        let (measured, result) = self.setting.run(verb, pod, self.results.get(index), how);
        if verb == "ADD" {
            self.results.push(result);
        }
        measured
    }
}

fn measure(case: &Case, existing: usize, options: &Options) -> Vec<Row> {
    // The first pod creates bridge and tables and is not measured. For the last one system calls are counted.
    let pods = options.runs + 2;
    let mut ours = Side::new(case, None, existing, pods);
    let mut theirs = Side::new(case, Some(&options.against), existing, pods);
    let mut row_of = |verb: &&'static str| {
        let mut row = Row::new(case.name, verb, existing);
        for index in 0..=options.runs {
            let pair = (
                ours.call(verb, index, timed::call),
                theirs.call(verb, index, timed::call),
            );
            if index > 0 {
                row.push(pair);
            }
        }
        let last = options.runs + 1;
        row.count = (
            ours.call(verb, last, timed::counts),
            theirs.call(verb, last, timed::counts),
        );
        row
    };
    case.verbs.iter().map(&mut row_of).collect()
}

/// Compares gangplank with bare netlink requests.
fn measure_baseline(case: &Case, options: &Options) -> Vec<Row> {
    let mut ours = Side::new(case, None, 0, options.runs + 1);
    let mut bare = Side::new(case, None, 0, options.runs + 1);
    // Creates the bridge.
    bare.call("ADD", 0, timed::call);
    let mut row_of = |verb: &'static str| {
        let mut row = Row::new("gateway, theirs: baseline", verb, 0);
        for index in 0..=options.runs {
            let mine = ours.call(verb, index, timed::call);
            if index > 0 {
                let call = baseline::command(verb, &bare.pods[index], index);
                row.push((mine, timed::call(&bare.node, &call).0));
            }
        }
        row
    };
    vec![row_of("ADD"), row_of("DEL")]
}

/// The time for 100 ADDs, 10 at a time.
fn measure_concurrent_adds(case: &Case, options: &Options) -> Row {
    const PODS: usize = 100;
    const AT_ONCE: usize = 10;
    const ROUNDS: usize = 3;
    let took = |plugins: Option<&PathBuf>| {
        let side = Side::new(case, plugins, 0, PODS);
        side.node.inside(|| {
            let start = Instant::now();
            std::thread::scope(|scope| {
                for pods in side.pods.chunks(PODS / AT_ONCE) {
                    let setting = &side.setting;
                    scope.spawn(move || {
                        for pod in pods {
                            timed::run_here(&setting.first_add(pod, 0));
                        }
                    });
                }
            });
            start.elapsed()
        })
    };
    let mut row = Row::new(case.name, "100 ADDs, 10 at a time", 0);
    for _ in 0..ROUNDS {
        let pair: (Duration, Duration) = (took(None), took(Some(&options.against)));
        row.push(pair);
    }
    row
}
