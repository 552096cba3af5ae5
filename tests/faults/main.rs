//! Fault injection with strace: a call is killed before one of its system calls, gets SIGTERM there, or that system
//! call fails. Afterwards a repeated DEL must remove everything, and the next ADD must succeed.
//! By default, faults are injected at each system call in simple cases and at a sample in the others, which takes
//! minutes. `GANGPLANK_FAULTS=all` injects faults at all system calls. With `GANGPLANK_TEST_PLUGINS=/usr/lib/cni`
//! failures of the Go plugins are only counted (shown with `-- --nocapture`).

use gangplank_test_support as support;

mod chains;
mod concurrency;
mod del;
mod errors;
mod fixture;
mod kill;
mod ptp;
mod recovery;
mod report;
mod term;
mod trace;
mod waits;
