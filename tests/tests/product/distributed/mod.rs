//! The cluster: roles as processes of their own over a real Kafka and a real object store.

mod check;
mod compose;
mod workers;
