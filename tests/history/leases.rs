//! Lease directories written by another implementation, restored, shared or damaged.
