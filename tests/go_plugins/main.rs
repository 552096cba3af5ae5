//! Beside the reference: the Go plugins that Debian packages, and ours, on the same nodes, with the same files.
//!
//! Everything here is first proven on the reference itself. Where ours is deliberately better, a table says so and
//! why, and the reference must really do worse there.

use gangplank_test_support::{self as support, implementation};

mod concurrency;
mod defects;
mod keys;
mod matrix;
mod normal;
mod side_by_side;
