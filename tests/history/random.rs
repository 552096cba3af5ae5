//! Random sequences of foreign actions, with invariants checked after each step.
