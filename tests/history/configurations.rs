//! Configurations that the Go plugins accept.
