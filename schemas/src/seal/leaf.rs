//! Leaf data: the 44 bytes that a stream's tree holds for an event.
//!
//! SHA-256(record) ‖ `at` (u64, microseconds, big endian) ‖ kind (u16) ‖ flags (u16). The facts on
//! which every report filters are here, so that completeness can be proven without opening the
//! records.

use crate::event::Event;
use crate::id::{Bytes, Hash, Micros, Uint};
use crate::kind::Kind;
use crate::words::{Effect, Status, SubjectStatus};

/// The data are labelled as protected health information.
pub const FLAG_PHI: u16 = 1;
/// The call was refused.
pub const FLAG_DENIED: u16 = 1 << 1;
/// The call has more subjects than this record lists.
pub const FLAG_SUBJECTS_PARTIAL: u16 = 1 << 2;
/// Protected health information without a recognised subject.
pub const FLAG_UNRECOGNISED: u16 = 1 << 3;
/// Nobody knows how the call ended.
pub const FLAG_OUTCOME_UNKNOWN: u16 = 1 << 4;

/// The flags that an event's other facts imply.
#[must_use]
pub fn flags(event: &Event) -> u16 {
    let data = &event.data;
    let phi = data.is_phi();
    let denied = event.decision.as_ref().is_some_and(|d| d.effect == Effect::Deny);
    let listed = data.subjects.len() as u64;
    let partial = data.subject_count.is_some_and(|count| count.get() > listed);
    let recognised = data.subject_status == Some(SubjectStatus::Recognised);
    let unknown = event.outcome.as_ref().is_some_and(|o| o.status == Status::Unknown);
    [
        (FLAG_PHI, phi),
        (FLAG_DENIED, denied || event.kind == Kind::CallDenied),
        (FLAG_SUBJECTS_PARTIAL, partial),
        (FLAG_UNRECOGNISED, phi && !recognised && event.kind == Kind::CallEnded),
        (FLAG_OUTCOME_UNKNOWN, unknown),
    ]
    .iter()
    .filter(|(_, set)| *set)
    .fold(0, |all, (flag, _)| all | flag)
}

/// Leaf data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf([u8; Leaf::BYTES]);

impl Leaf {
    /// Length of leaf data.
    pub const BYTES: usize = 44;

    /// The leaf of a record.
    #[must_use]
    pub fn new(record: Hash, at: Micros, code: u16, flags: u16) -> Self {
        let mut data = [0; Self::BYTES];
        data[..32].copy_from_slice(&record.0);
        data[32..40].copy_from_slice(&at.get().to_be_bytes());
        data[40..42].copy_from_slice(&code.to_be_bytes());
        data[42..].copy_from_slice(&flags.to_be_bytes());
        Self(data)
    }

    /// Leaf data as it was stored.
    #[must_use]
    pub const fn from_bytes(data: [u8; Self::BYTES]) -> Self {
        Self(data)
    }

    /// The 44 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// SHA-256 of the record.
    #[must_use]
    pub fn record(&self) -> Hash {
        let mut hash = [0; 32];
        hash.copy_from_slice(&self.0[..32]);
        Bytes(hash)
    }

    /// When the event was recorded.
    #[must_use]
    pub fn at(&self) -> Micros {
        let mut at = [0; 8];
        at.copy_from_slice(&self.0[32..40]);
        Uint::new(u64::from_be_bytes(at))
    }

    /// The number of the event's kind.
    #[must_use]
    pub fn code(&self) -> u16 {
        u16::from_be_bytes([self.0[40], self.0[41]])
    }

    /// The flags.
    #[must_use]
    pub fn flags(&self) -> u16 {
        u16::from_be_bytes([self.0[42], self.0[43]])
    }
}
