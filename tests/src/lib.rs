//! What the tests of the whole product share: starting `custody` as a user would, MCP servers to
//! put behind it, and asking it questions.
//!
//! Everything is real: the built executable, real sockets, real files. A test that starts
//! something holds a value whose `Drop` ends it.

pub mod check;
pub mod cluster;
pub mod conformance;
pub mod fault;
pub mod havoc;
pub mod http;
pub mod metrics;
pub mod outage;
pub mod product;
pub mod question;
pub mod sealed;
pub mod services;
pub mod storm;
pub mod tools;
pub mod upstream;
pub mod wait;
pub mod witness;
