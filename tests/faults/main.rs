//! Nothing lost: a verb is killed before each of its system calls in turn, or has each of them fail, and afterwards
//! its own DEL, repeated, and the next ADD find nothing in their way.
//!
//! By default a suite of minutes takes each call of the plain cases and every few of the others.
//! `GANGPLANK_FAULTS=all` takes all of them. With `GANGPLANK_TEST_PLUGINS=/usr/lib/cni` the same is done to the Go
//! plugins, and only counted (`-- --nocapture` shows it).

use gangplank_test_support as support;

mod concurrency;
mod del;
mod errors;
mod findings;
mod fixture;
mod kill;
mod recovery;
mod term;
mod trace;
mod waits;
