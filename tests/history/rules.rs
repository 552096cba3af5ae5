//! Packet filter rules of other tools, variants and plugins.
