//! The whole product, tried from outside: real processes, real clients, real files.

mod bad_input;
mod clients;
mod demo;
mod fidelity;
mod kill;
mod line;
mod structure;
