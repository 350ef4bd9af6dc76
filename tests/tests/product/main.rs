//! The whole product, tried from outside: real processes, real clients, real files.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "figures for whoever runs a test alone")]

mod agents;
mod bad_input;
mod clients;
mod conformance;
mod demo;
mod distributed;
mod evidence;
mod fidelity;
mod hospital;
mod keys;
mod kill;
mod line;
mod operations;
mod soak;
mod structure;
mod syscalls;
mod tamper;
mod verify;
mod watch;
mod witness;
