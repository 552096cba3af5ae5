//! Scoped threads for work that waits for the kernel or for programs.

use std::fmt::Display;
use std::io;
use std::thread::{self, ScopedJoinHandle};

use crate::kernel::log::timed_span;

/// Runs both closures concurrently, the first in a thread of its own. If no thread can be created (EAGAIN), runs one
/// after the other. The first is the span `name`.
pub fn join<A: Send, E: Display + Send, B>(
    name: &'static str,
    first: impl Fn() -> Result<A, E> + Sync,
    second: impl FnOnce() -> B,
) -> (Result<A, E>, B) {
    let first = || timed_span(name, &first);
    thread::scope(|scope| {
        let started = thread::Builder::new().spawn_scoped(scope, first);
        // The new thread may be queued on this processor. It begins at once, and soon waits.
        thread::yield_now();
        let second = second();
        let first = match started {
            Ok(thread) => thread.join().expect("a panic ends the process"),
            Err(_) => first(),
        };
        (first, second)
    })
}

/// Runs a function for all items concurrently. Returns the results in the order of the items.
pub fn concurrently<T: Sync, R: Send>(items: &[T], run: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let Some((last, others)) = items.split_last() else {
        return Vec::new();
    };
    let run = &run;
    thread::scope(|scope| {
        let start = |item| thread::Builder::new().spawn_scoped(scope, move || run(item));
        let started: Vec<_> = others.iter().map(start).collect();
        let last = run(last);
        let finish = |(item, started): (&T, io::Result<ScopedJoinHandle<R>>)| match started {
            Ok(thread) => thread.join().expect("a panic ends the process"),
            Err(_) => run(item),
        };
        let mut results: Vec<R> = others.iter().zip(started).map(finish).collect();
        results.push(last);
        results
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_the_order_of_the_items() {
        assert_eq!(concurrently(&[3, 1, 2], |item| item * 2), [6, 2, 4]);
    }
}
