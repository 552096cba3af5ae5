//! The operator's command line: each command on nodes in their own namespaces, with pods of gangplank and of the Go
//! plugins, and with broken networks.

use gangplank_test_support as support;

mod chained;
mod command_line;
mod conf;
mod doctor;
mod fix;
mod fixture;
mod install;
mod metrics;
mod reconcile;
mod routes;
mod status;
