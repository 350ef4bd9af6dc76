//! The last look at a server's message before its client has it: what must be changed in it.
//!
//! On most routes nothing is. From a list of tools those are cut that may not be used
//! ([`crate::tools`]); at the common address of several servers names and ids say whose they are
//! ([`crate::federation`]). What is changed is on the record.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use custody_schemas::id::CallId;

use crate::call::Exchange;
use crate::errors::Failure;
use crate::federation::{Changes, Down, Unclear, View};
use crate::record::Facts;
use crate::splice::Message;
use crate::sse::Frame;
use crate::tools::{self, Unshown};
use crate::{Proxy, Served};

/// Looks at the messages of one server for one client.
#[derive(Clone)]
pub(crate) struct Reviser {
    proxy: Arc<Proxy>,
    served: Arc<Served>,
    /// How the server looks at the common address.
    view: Option<View>,
}

impl Unshown {
    /// How it looks to the client.
    pub(crate) fn failure(self) -> Failure {
        match self {
            Self::Unrecorded => Failure::AuditOutcomeUnrecorded,
            Self::Ambiguous => Failure::UpstreamInvalid,
        }
    }
}

impl From<Unclear> for Unshown {
    fn from(Unclear: Unclear) -> Self {
        Self::Ambiguous
    }
}

impl Reviser {
    /// For the messages that come back in this exchange.
    pub(crate) fn of(exchange: &Exchange<'_>) -> Self {
        let (proxy, served) = (Arc::clone(&exchange.visit.proxy), Arc::clone(exchange.served));
        Self { proxy, served, view: exchange.visit.view.clone() }
    }

    /// An answer to `call`. What is new in it is on the record when this returns.
    pub(crate) async fn answer(
        &self,
        call: CallId,
        facts: &Facts,
        bytes: &Bytes,
    ) -> Result<Message, Unshown> {
        let mut changes = Changes::new();
        if facts.method() == tools::LISTING {
            let (call, private) = ((call, facts), self.view.is_some());
            changes = tools::look(&self.proxy, &self.served, call, bytes, private).await?;
        }
        if let Some(view) = &self.view {
            let cut = changes.clone();
            let inside = |range: &Range<usize>| {
                cut.iter().any(|(cut, _)| cut.start <= range.start && range.end <= cut.end)
            };
            let text = std::str::from_utf8(bytes).map_err(|_| Unshown::Ambiguous)?;
            let marked = view.down(text, Down::Answer(facts.method()))?;
            changes.extend(marked.into_iter().filter(|(range, _)| !inside(range)));
        }
        spliced(bytes, changes)
    }

    /// A request or notification of the server's own.
    pub(crate) fn own(&self, bytes: &Bytes) -> Result<Message, Unshown> {
        let Some(view) = &self.view else { return Ok(bytes.clone().into()) };
        let text = std::str::from_utf8(bytes).map_err(|_| Unshown::Ambiguous)?;
        spliced(bytes, view.down(text, Down::Own)?)
    }

    /// Under which id the client knows a request of the server.
    pub(crate) fn id(&self, raw: &str) -> String {
        self.view.as_ref().map_or_else(|| raw.to_owned(), |view| view.token(raw))
    }

    /// An event of a stream as the client is to have it, with this message if it has one.
    pub(crate) fn event(&self, frame: &Frame, message: Option<&Message>) -> Bytes {
        let data = message.map(|message| &message.bytes[..]);
        match &self.view {
            Some(view) => frame.carrying(data, |id| Some(view.event(id))),
            None if message.is_none_or(|message| message.edits.is_empty()) => frame.passing(),
            None => frame.carrying(data, |id| Some(id.to_vec())),
        }
    }
}

fn spliced(bytes: &Bytes, changes: Changes) -> Result<Message, Unshown> {
    Message::spliced(bytes.clone(), changes).map_err(|_| Unshown::Ambiguous)
}
