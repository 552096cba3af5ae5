//! `gangplank status --metrics`: the text format of Prometheus
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>), for the textfile collector of a node exporter.

use std::fmt::{Display, Write};

use crate::build;
use crate::cli::status::NetworkStatus;
use crate::plugins::call_metrics::{BOUNDS_MS, Calls};

/// The metrics of networks and calls.
pub fn text(networks: &[NetworkStatus], calls: &[Calls]) -> String {
    let mut text = String::new();
    let version = build::version();
    let version = version.trim_start_matches("gangplank.");
    Metric::new(&mut text, "build_info gauge", "Version of gangplank.").sample(
        "",
        &[("version", version)],
        1,
    );
    write_networks(&mut text, networks);
    write_ranges(&mut text, networks);
    write_calls(&mut text, calls);
    text
}

fn write_networks(text: &mut String, networks: &[NetworkStatus]) {
    type Count = fn(&NetworkStatus) -> usize;
    let counts: [(&str, &str, Count); 4] = [
        (
            "attachments gauge",
            "Attachments to the bridge of the network, as listed by status.",
            |it| it.pods.len(),
        ),
        (
            "unhealthy_attachments gauge",
            "Attachments with a problem in the column HEALTH of status.",
            |it| it.pods.iter().filter(|pod| !pod.health.is_empty()).count(),
        ),
        (
            "port_mappings gauge",
            "Ports of the host that are mapped to containers.",
            |it| {
                let of_pods = it.pods.iter().map(|pod| pod.port_mappings.len());
                of_pods.sum::<usize>() + it.other_port_mappings.len()
            },
        ),
        (
            "stale_port_mappings gauge",
            "Ports of the host that are mapped to containers that do not exist.",
            |it| {
                it.other_port_mappings
                    .iter()
                    .filter(|port| port.left_over)
                    .count()
            },
        ),
    ];
    for (name_and_type, help, count) in counts {
        let mut metric = Metric::new(text, name_and_type, help);
        for network in networks.iter().filter(|it| !it.name.is_empty()) {
            metric.sample("", &[("network", &network.name)], count(network));
        }
    }
}

fn write_ranges(text: &mut String, networks: &[NetworkStatus]) {
    let ranges = || {
        networks.iter().flat_map(|network| {
            let labels = |range| [("network", network.name.as_str()), ("range", range)];
            network
                .ranges
                .iter()
                .map(move |usage| (labels(usage.range.as_str()), usage))
        })
    };
    let mut leases = Metric::new(
        text,
        "leases gauge",
        "Addresses of the range that are leased.",
    );
    for (labels, usage) in ranges() {
        leases.sample("", &labels, usage.used);
    }
    let mut free = Metric::new(
        text,
        "free_addresses gauge",
        "Addresses of the range that are not leased.",
    );
    for (labels, usage) in ranges() {
        free.sample("", &labels, usage.size.saturating_sub(usage.used as u128));
    }
}

fn write_calls(text: &mut String, calls: &[Calls]) {
    let labels = |calls: &'_ Calls| {
        [
            ("plugin", calls.plugin.clone()),
            ("command", calls.command.clone()),
            ("code", calls.code.clone()),
        ]
    };
    let mut total = Metric::new(
        text,
        "cni_calls_total counter",
        "CNI calls by plugin, command and error code; 0 is success.",
    );
    for calls in calls {
        total.sample(
            "",
            &labels(calls)
                .each_ref()
                .map(|(key, value)| (*key, value.as_str())),
            calls.count(),
        );
    }
    let mut duration = Metric::new(
        text,
        "cni_call_duration_seconds histogram",
        "Duration of CNI calls.",
    );
    for calls in calls {
        let labels = labels(calls);
        let labels = labels.each_ref().map(|(key, value)| (*key, value.as_str()));
        let mut below = 0;
        let bounds = BOUNDS_MS.map(|ms| (ms as f64 / 1000.0).to_string());
        let bounds = bounds.iter().map(String::as_str).chain(["+Inf"]);
        for (bound, bucket) in bounds.zip(calls.buckets) {
            below += bucket;
            let labels = [&labels[..], &[("le", bound)]].concat();
            duration.sample("_bucket", &labels, below);
        }
        duration.sample("_sum", &labels, calls.time.as_secs_f64());
        duration.sample("_count", &labels, below);
    }
}

/// The samples of a metric.
struct Metric<'t> {
    text: &'t mut String,
    name: String,
    /// The lines before the first sample. A metric without samples is not printed.
    header: Option<String>,
}

impl Metric<'_> {
    /// `name_and_type` is without the prefix `gangplank_`.
    fn new<'t>(text: &'t mut String, name_and_type: &str, help: &str) -> Metric<'t> {
        let name = name_and_type.split(' ').next().unwrap_or_default();
        let name = format!("gangplank_{name}");
        let header = format!("# HELP {name} {help}\n# TYPE gangplank_{name_and_type}\n");
        Metric {
            text,
            name,
            header: Some(header),
        }
    }

    fn sample(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(&self.header.take().unwrap_or_default());
        let labels = labels
            .iter()
            .map(|(key, value)| format!("{key}=\"{}\"", escape(value)));
        let labels = labels.collect::<Vec<_>>().join(",");
        let _ = writeln!(self.text, "{}{suffix}{{{labels}}} {value}", self.name);
    }
}

fn escape(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}
