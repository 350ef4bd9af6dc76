//! What an event says happened, by name and by the number that its leaf carries.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The kind of an event. Names and numbers are final: they are never reused.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A call was allowed and is about to be forwarded.
    CallRequested,
    /// A call was refused by identity or policy; its only event.
    CallDenied,
    /// A call ended, see [`Status`](crate::words::Status).
    CallEnded,
    /// Data subjects of a call beyond those in its ending.
    SubjectsListed,
    /// A notification or a server-to-client message, either way.
    MessageRelayed,
    /// A tool definition was first seen or changed.
    ToolsObserved,
    /// The first leaf of a stream.
    StreamOpened,
    /// The writer lives, though nothing happens.
    StreamAlive,
    /// The last leaf of a stream.
    StreamClosed,
    /// Calls may from now on run unaudited.
    AuditDegraded,
    /// Auditing is whole again.
    AuditRestored,
    /// Stored bytes do not match what was signed.
    IntegrityFailed,
    /// A writer will write no more.
    WriterRetired,
    /// Credentials were refused, counted per source, reason and minute.
    AuthRefused,
    /// A query is about to run.
    QueryRequested,
    /// A query ended.
    QueryEnded,
    /// Somebody read the content of a body.
    BodyRead,
    /// An evidence package was made.
    EvidenceExported,
    /// A person reviewed an access.
    AccessReviewed,
    /// A later detection changed what is known of an access.
    AccessReclassified,
    /// Policy, key, pin, approval, account, hold, label rule or configuration changed.
    ControlChanged,
    /// Events or bodies left by a retention rule.
    RetentionApplied,
    /// What was kept about a data subject was erased.
    SubjectErased,
    /// A kind that this version does not know; it is kept as it is.
    Unknown(String),
}

const NAMES: [(Kind, &str, u16); 23] = [
    (Kind::CallRequested, "call.requested", 1),
    (Kind::CallDenied, "call.denied", 2),
    (Kind::CallEnded, "call.ended", 3),
    (Kind::SubjectsListed, "subjects.listed", 4),
    (Kind::MessageRelayed, "message.relayed", 5),
    (Kind::ToolsObserved, "tools.observed", 6),
    (Kind::StreamOpened, "stream.opened", 7),
    (Kind::StreamAlive, "stream.alive", 8),
    (Kind::StreamClosed, "stream.closed", 9),
    (Kind::AuditDegraded, "audit.degraded", 10),
    (Kind::AuditRestored, "audit.restored", 11),
    (Kind::IntegrityFailed, "integrity.failed", 12),
    (Kind::WriterRetired, "writer.retired", 13),
    (Kind::AuthRefused, "auth.refused", 14),
    (Kind::QueryRequested, "query.requested", 15),
    (Kind::QueryEnded, "query.ended", 16),
    (Kind::BodyRead, "body.read", 17),
    (Kind::EvidenceExported, "evidence.exported", 18),
    (Kind::AccessReviewed, "access.reviewed", 19),
    (Kind::AccessReclassified, "access.reclassified", 20),
    (Kind::ControlChanged, "control.changed", 21),
    (Kind::RetentionApplied, "retention.applied", 22),
    (Kind::SubjectErased, "subject.erased", 23),
];

impl Kind {
    /// Every kind that this version knows.
    pub fn known() -> impl Iterator<Item = Self> {
        NAMES.iter().map(|(kind, ..)| kind.clone())
    }

    /// The name in records, SQL and the `ce_type` header.
    #[must_use]
    pub fn as_str(&self) -> &str {
        if let Self::Unknown(name) = self {
            return name;
        }
        NAMES.iter().find(|row| row.0 == *self).map_or("", |row| row.1)
    }

    /// The number in the leaf; 0 for a kind that this version does not know.
    #[must_use]
    pub fn code(&self) -> u16 {
        NAMES.iter().find(|row| row.0 == *self).map_or(0, |row| row.2)
    }
}

impl From<String> for Kind {
    fn from(name: String) -> Self {
        NAMES
            .iter()
            .find(|row| row.1 == name)
            .map_or_else(|| Self::Unknown(name), |row| row.0.clone())
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Kind {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_unique_and_read_back() {
        for (i, (kind, name, code)) in NAMES.iter().enumerate() {
            assert_eq!(Kind::from((*name).to_owned()), *kind);
            assert_eq!((kind.as_str(), kind.code()), (*name, *code));
            assert_eq!(usize::from(*code), i + 1, "numbers have no hole");
        }
        let unknown = Kind::from("call.paused".to_owned());
        assert_eq!((unknown.as_str(), unknown.code()), ("call.paused", 0));
    }
}
