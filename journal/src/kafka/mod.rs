//! The journal on Apache Kafka: three topics, many writers and readers.
//!
//! * What `wire` writes it reads back, and whatever else stands in a topic reads as an entry.
//! * Nothing counts as appended before all in-sync replicas have it.

pub(crate) mod append;
pub(crate) mod cluster;
mod group;
mod journal;
mod layout;
pub(crate) mod link;
pub(crate) mod producer;
pub(crate) mod reader;
pub(crate) mod settings;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod topics;
pub(crate) mod wire;

pub use append::KafkaAppend;
pub use group::{Group, Membership};
pub use journal::KafkaJournal;
pub use layout::Problem;
pub use settings::{
    ClientCertificate, KafkaSettings, LEAST_RETENTION, Login, OAuth, Sasl, Secret, Security, Tls,
    Topics,
};
pub use topics::{Report, TopicsError, check, create};
