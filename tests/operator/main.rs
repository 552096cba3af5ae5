//! The operator's command line at work: each command on nodes in namespaces of their own, with pods that the plugins made,
//! ours and those of Go, and with networks that somebody broke.

use gangplank_test_support as support;

mod command_line;
mod conf;
mod doctor;
mod fix;
mod fixture;
mod install;
mod reconcile;
mod routes;
mod status;
