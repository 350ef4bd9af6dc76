//! A cut: up to where an answer reads each partition of the journal, as a text to hand on.
//!
//! Whoever names a cut in a question gets the rows below it, from any node and at any later time:
//! partitions and offsets do not depend on what a node has in memory or on a table's version. The
//! text is opaque to clients; it has no blanks and nothing that a URL's query would have to escape.

use std::fmt;

use custody_journal::{Partition, Topic};
use custody_schemas::id::{Micros, Uint};

use crate::error::QueryError;
use crate::tail::Offsets;

/// The longest text that is read.
const MAX_BYTES: usize = 64 << 10;

/// Everything below these offsets, judged at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// `{cluster}@{epoch}` of the journal whose offsets these are.
    pub(crate) journal: String,
    /// When the answer that it was taken from was asked for.
    pub(crate) as_of: Micros,
    /// The first offset of each partition that is not in it.
    pub(crate) ends: Offsets,
}

impl Cut {
    /// The first offset of `partition` that is not in it.
    pub(crate) fn end(&self, partition: &Partition) -> u64 {
        self.ends.get(partition).copied().unwrap_or(0)
    }

    /// Reads what [`fmt::Display`] writes.
    ///
    /// # Errors
    /// [`QueryError::BadRequest`] for another text, and for a cut of another journal.
    pub(crate) fn parse(text: &str, journal: &str) -> Result<Self, QueryError> {
        let wrong = || {
            QueryError::BadRequest(
                "this is no cut: take it as it is from the custody-cut header of an answer"
                    .to_owned(),
            )
        };
        if text.len() > MAX_BYTES {
            return Err(wrong());
        }
        let mut parts = text.split(',');
        let of = parts.next().ok_or_else(wrong)?.to_owned();
        let as_of = parts.next().and_then(|at| at.parse().ok()).ok_or_else(wrong)?;
        let ends = parts.map(|part| end(part).ok_or_else(wrong)).collect::<Result<_, _>>()?;
        if of != journal {
            return Err(QueryError::BadRequest(format!(
                "this is a cut of the journal {of:?}; here is {journal:?}"
            )));
        }
        Ok(Self { journal: of, as_of: Uint::new(as_of), ends })
    }
}

/// `events/NAME:OFFSET` or `bodies/NAME:OFFSET`.
fn end(text: &str) -> Option<(Partition, u64)> {
    let (partition, end) = text.rsplit_once(':')?;
    let (topic, name) = partition.split_once('/')?;
    let topic = match topic {
        "events" => Topic::Events,
        "bodies" => Topic::Bodies,
        _ => return None,
    };
    Some((Partition { topic, name: name.to_owned() }, end.parse().ok()?))
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.journal, self.as_of.get())?;
        for (partition, end) in &self.ends {
            let topic = match partition.topic {
                Topic::Events => "events",
                Topic::Bodies => "bodies",
                Topic::Control => continue,
            };
            write!(f, ",{topic}/{}:{end}", partition.name)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_reads_back_as_it_was_and_only_for_its_own_journal() {
        let partition = |topic, name: &str| Partition { topic, name: name.to_owned() };
        let cut = Cut {
            journal: "main@1".to_owned(),
            as_of: Uint::new(1_764_000_000_000_000),
            ends: [
                (partition(Topic::Events, "0"), 12),
                (partition(Topic::Bodies, "edge-1.bulk"), 0),
            ]
            .into(),
        };
        let text = cut.to_string();
        assert_eq!(text, "main@1,1764000000000000,events/0:12,bodies/edge-1.bulk:0");
        assert_eq!(Cut::parse(&text, "main@1").unwrap(), cut);
        let other = Cut::parse(&text, "main@2").unwrap_err().to_string();
        assert!(other.contains("main@1") && other.contains("main@2"), "{other}");
        for wrong in ["", "main@1", "main@1,x", "main@1,1,events/0", "main@1,1,control/0:1"] {
            assert!(Cut::parse(wrong, "main@1").is_err(), "{wrong:?}");
        }
    }
}
