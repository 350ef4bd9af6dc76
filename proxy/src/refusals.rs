//! Strangers who are turned away, counted per source, reason and minute, so that somebody who
//! tries a thousand keys leaves one `auth.refused` a minute and not a thousand records.
//!
//! At most [`MAX_SOURCES`] pairs of source and reason are told apart in a minute; what comes from
//! others is counted together. Counts are recorded every minute and when the proxy stops.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use custody_schemas::event::{Draft, Source, Who};
use custody_schemas::kind::Kind;

use crate::errors::Failure;

/// How long refusals are counted before they are recorded.
pub(crate) const COUNT_FOR: Duration = Duration::from_secs(60);
/// How many pairs of source and reason are told apart at a time.
const MAX_SOURCES: usize = 1024;
/// What stands for all sources beyond those.
const OTHERS: &str = "others";

/// Who was turned away, and why; nobody in particular beyond [`MAX_SOURCES`].
type Key = (Option<IpAddr>, Failure);

/// Refusals that are not recorded yet.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<HashMap<Key, u64>>);

impl Refusals {
    /// Counts one.
    pub(crate) fn count(&self, source: IpAddr, failure: Failure) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (Some(source), failure);
        let tell_apart = counts.len() < MAX_SOURCES || counts.contains_key(&key);
        *counts.entry(if tell_apart { key } else { (None, failure) }).or_insert(0) += 1;
    }

    /// What was counted since the last time, as events.
    pub(crate) fn take(&self) -> Vec<Draft> {
        let counts = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let event = |((source, failure), count): (Key, u64)| {
            let ip = source.map_or_else(|| OTHERS.to_owned(), |ip| ip.to_string());
            let mut draft = Draft::new(Kind::AuthRefused)
                .with("edge", "proxy")
                .with("reason", failure.reason())
                .with("count", count);
            let source = Some(Source { ip, ..Source::default() });
            draft.who = Some(Arc::new(Who { source, ..Who::default() }));
            draft
        };
        counts.into_iter().map(event).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_told_apart_up_to_a_limit_and_everyone_is_counted() {
        let refusals = Refusals::default();
        for i in 0..10_000u32 {
            refusals.count(IpAddr::from(i.to_be_bytes()), Failure::Unauthenticated);
        }
        refusals.count(IpAddr::from([0, 0, 0, 1]), Failure::Unauthenticated);
        let events = refusals.take();
        assert_eq!(events.len(), MAX_SOURCES + 1);
        let of = |ip: &str| {
            let source =
                |draft: &&Draft| draft.who.as_ref().unwrap().source.as_ref().unwrap().ip == ip;
            events.iter().find(source).unwrap().detail["count"].clone()
        };
        assert_eq!(of("0.0.0.1"), 2.into());
        assert_eq!(of(OTHERS), (10_000 - MAX_SOURCES as u64).into());
        assert!(refusals.take().is_empty());
    }
}
