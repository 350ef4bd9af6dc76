//! The journal on Apache Kafka: three topics, many writers and readers.
//!
//! * What `wire` writes it reads back, and whatever else stands in a topic reads as an entry.
//! * Nothing counts as appended before all in-sync replicas have it.

mod layout;
mod link;
pub(crate) mod producer;
mod settings;
#[cfg(test)]
pub(crate) mod testing;
mod topics;
mod wire;

pub use layout::Problem;
pub use settings::{
    ClientCertificate, KafkaSettings, LEAST_RETENTION, Login, OAuth, Sasl, Secret, Security, Tls,
    Topics,
};
pub use topics::{Report, TopicsError, check, create};
