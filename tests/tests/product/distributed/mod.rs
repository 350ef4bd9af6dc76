//! The cluster: roles as processes of their own over a real Kafka and a real object store.

mod bad_input;
mod compose;
mod from_nothing;
mod havoc;
mod outage;
mod same_rows;
mod upgrade;
mod workers;
