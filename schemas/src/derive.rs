//! What follows from a record: the accesses that it shows. Pure and versioned, so that a
//! verification can repeat it.

use crate::event::{Event, Subject};
use crate::kind::Kind;

/// The version of these rules; a change of their results is a new version.
pub const DERIVE_VERSION: u32 = 1;

/// One access: a call, a data subject or nobody recognised, and a direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access<'a> {
    /// The subject; none when the call is known to touch protected data and nobody was recognised.
    pub subject: Option<&'a Subject>,
}

/// The accesses that a record shows.
///
/// An ending shows one for each subject, and at least one if its data are protected health
/// information; an opening does the same, for as long as no ending is known; `subjects.listed`
/// shows those that did not fit into the ending. Other kinds show none.
#[must_use]
pub fn accesses(event: &Event) -> Vec<Access<'_>> {
    let counts = matches!(event.kind, Kind::CallRequested | Kind::CallEnded | Kind::SubjectsListed);
    if !counts {
        return Vec::new();
    }
    let subjects = event.data.subjects.iter().map(|s| Access { subject: Some(s) });
    let mut rows: Vec<_> = subjects.collect();
    if rows.is_empty() && event.data.is_phi() && event.kind != Kind::SubjectsListed {
        rows.push(Access { subject: None });
    }
    rows
}
