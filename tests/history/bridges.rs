//! Bridges, links and addresses that others made.
