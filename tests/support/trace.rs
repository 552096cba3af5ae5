//! Fault injection with strace(1).

use std::collections::HashMap;
use std::fmt;

use super::{Answer, Call, Node};

/// The log of strace on the node.
pub const LOG: &str = "/run/trace";

/// Time limit of a plugin; strace slows a call down by about 20 ms.
const LIMIT: &str = "timeout --signal=KILL 60";

/// A system call of a plugin. strace counts per name.
#[derive(Clone, Debug)]
pub struct Step {
    /// The index of the plugin in the chain.
    pub plugin: usize,
    pub name: String,
    /// `when=` of strace: the number of the call among those with the same name.
    pub occurrence: usize,
    /// The line in the log without a fault.
    pub line: String,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "plugin {}, {} {}",
            self.plugin, self.name, self.occurrence
        )
    }
}

/// The injected fault.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The process is killed.
    Killed,
    /// The process gets SIGTERM.
    Terminated,
    /// The system call is not made and fails with that errno.
    Failing(&'static str),
}

impl Node {
    /// Runs a call with a fault at a step.
    pub fn call_with_fault(&self, call: &Call, step: &Step, fault: Fault) -> Answer {
        let what = match fault {
            Fault::Killed => "signal=KILL".to_owned(),
            Fault::Terminated => "signal=TERM".to_owned(),
            Fault::Failing(errno) => format!("error={errno}"),
        };
        let Step {
            name, occurrence, ..
        } = step;
        let inject = format!("--inject={name}:{what}:when={occurrence}");
        self.inside(|| drop(std::fs::remove_file(LOG)));
        call.clone()
            .under(&format!("{LIMIT} strace -o {LOG} {inject}"))
            .run()
    }

    /// Runs a call without a fault. Returns its system calls too.
    pub fn traced(&self, call: &Call) -> (Answer, Vec<Step>) {
        let traced = call.clone().under(&format!("{LIMIT} strace -o {LOG}"));
        let answer = traced.run();
        let mut seen: HashMap<String, usize> = HashMap::new();
        let mut step = |line: &str| {
            let (name, _) = line.split_once('(')?;
            let name = name.to_owned();
            let occurrence = seen.entry(name.clone()).or_default();
            *occurrence += 1;
            let occurrence = *occurrence;
            Some(Step {
                plugin: 0,
                name,
                occurrence,
                line: line.to_owned(),
            })
        };
        let log = self.read(LOG);
        let calls = log.lines().filter(|line| !line.starts_with(['-', '+']));
        (answer, calls.filter_map(&mut step).collect())
    }
}
