//! The results as Markdown tables.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use crate::support::plugins_of_go;
use crate::timed::Counts;

/// The measurements of a verb of a case.
pub struct Row {
    case: &'static str,
    verb: &'static str,
    pods: usize,
    pairs: Vec<(Duration, Duration)>,
    /// Processes and system calls of one call.
    pub count: (Counts, Counts),
}

impl Row {
    pub const HEADER: &str = "\
| case | pods | verb | ours: median (p95) ms | theirs: median (p95) ms | ratio of medians | processes run | system calls |
|---|---|---|---|---|---|---|---|";

    pub fn new(case: &'static str, verb: &'static str, pods: usize) -> Row {
        Row {
            case,
            verb,
            pods,
            pairs: Vec::new(),
            count: Default::default(),
        }
    }

    pub fn push(&mut self, pair: (Duration, Duration)) {
        self.pairs.push(pair);
    }
}

impl Row {
    fn spreads(&self) -> (Spread, Spread) {
        let ours = Spread::of(self.pairs.iter().map(|pair| pair.0));
        (ours, Spread::of(self.pairs.iter().map(|pair| pair.1)))
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ours, theirs) = self.spreads();
        let counted = |ours: usize, theirs: usize| match self.count.0.calls {
            0 => String::new(),
            _ => format!("{ours} : {theirs}"),
        };
        let (us, them) = self.count;
        write!(
            f,
            "| {} | {} | {} | {ours} | {theirs} | {:.3} | {} | {} |",
            self.case,
            self.pods,
            self.verb,
            ours.median / theirs.median,
            counted(us.processes, them.processes),
            counted(us.calls, them.calls),
        )
    }
}

/// The medians of all verbs, with one line per case and number of pods.
pub fn summary(rows: &[Row]) -> String {
    let mut lines: Vec<(String, [String; 3])> = Vec::new();
    for row in rows {
        let name = match row.verb {
            "ADD" | "CHECK" | "DEL" => format!("| {} | {} |", row.case, row.pods),
            verb => format!("| {}, {verb} | {} |", row.case, row.pods),
        };
        let (ours, theirs) = (row.spreads().0.median, row.spreads().1.median);
        let cell = format!("{ours:.2} : {theirs:.2} ({:.2})", ours / theirs);
        let column = match row.verb {
            "CHECK" => 1,
            "DEL" => 2,
            _ => 0,
        };
        match lines.last_mut() {
            Some((last, cells)) if *last == name && cells[column].is_empty() => {
                cells[column] = cell;
            }
            _ => {
                let mut cells = <[String; 3]>::default();
                cells[column] = cell;
                lines.push((name, cells));
            }
        }
    }
    let line = |(name, cells): &(String, [String; 3])| format!("{name} {} |\n", cells.join(" | "));
    let header = "\
| ours : theirs in ms (ratio) | pods | ADD | CHECK | DEL |
|---|---|---|---|---|
";
    header.to_owned() + &lines.iter().map(line).collect::<String>()
}

/// The medians of ADD as bars; the slower one of each pair has full width.
pub fn chart(rows: &[Row]) -> String {
    const WIDTH: f64 = 50.0;
    let bar = |share: f64| "█".repeat((share * WIDTH).round().max(1.0) as usize);
    let of_row = |row: &Row| {
        let (ours, theirs) = row.spreads();
        let full = ours.median.max(theirs.median);
        format!(
            "{} {}, {} pods\n  ours   {} {:.2} ms\n  theirs {} {:.2} ms\n",
            row.case,
            row.verb,
            row.pods,
            bar(ours.median / full),
            ours.median,
            bar(theirs.median / full),
            theirs.median
        )
    };
    let adds = rows.iter().filter(|row| row.verb.contains("ADD"));
    adds.map(of_row).collect()
}

/// Median and 95th percentile, in milliseconds.
struct Spread {
    median: f64,
    p95: f64,
}

impl Spread {
    fn of(times: impl Iterator<Item = Duration>) -> Spread {
        let mut times: Vec<f64> = times.map(|time| time.as_secs_f64() * 1000.0).collect();
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
        Spread {
            median: at(0.5),
            p95: at(0.95),
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} ({:.2})", self.median, self.p95)
    }
}

/// The machine and the compared plugins.
pub fn machine(against: &Path) -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
    let names: Vec<&str> = plugins_of_go().collect();
    let theirs: u64 = names.iter().map(|name| size(&against.join(name))).sum();
    let ours = size(&crate::support::binary());
    format!(
        "Linux {}, {cpus} CPUs; theirs: {}\nsize in bytes: ours {ours}, theirs {theirs} ({})",
        kernel.trim(),
        against.display(),
        names.join(", ")
    )
}
