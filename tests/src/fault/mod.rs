//! What stands before an object store and a broker and does to their clients what networks do.
//!
//! Promises: nothing is changed on its way; what is lost is lost whole; everything is drawn from a
//! seed. [`store`] speaks HTTP, so that it can fail after success; [`broker`] knows only bytes.

pub mod broker;
pub mod store;
