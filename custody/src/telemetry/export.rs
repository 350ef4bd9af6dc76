//! Sends finished spans to a collector, a batch at a time (OTLP over HTTP).
//!
//! A batch that the collector cannot take just now is offered a few times and then dropped and
//! counted; meanwhile the queue fills, and beyond its limit spans are dropped where they end.

use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::layer::Finished;
use super::{Collector, Counts, otlp};
use crate::outbound::{Outbound, client};

/// Where a collector takes traces, below its base.
const PATH: &str = "/v1/traces";
/// How many spans are sent at once.
const BATCH: usize = 512;
/// How long the first span of a batch waits for others.
const GATHER: Duration = Duration::from_secs(2);
/// How long the collector may take for a batch.
const ANSWER: Duration = Duration::from_secs(5);
/// The pauses between attempts.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(5)];
/// The most that is read of an answer.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// Sends spans.
pub(super) struct Exporter {
    from: mpsc::Receiver<Finished>,
    http: Outbound,
    url: Uri,
    about: Vec<(&'static str, String)>,
    counts: Counts,
}

/// Why a batch was not taken.
enum Untaken {
    /// It may be taken later.
    Now(String),
    /// It never will be.
    Ever(String),
}

impl Exporter {
    pub(super) fn new(
        collector: &Collector,
        from: mpsc::Receiver<Finished>,
        counts: Counts,
    ) -> anyhow::Result<Self> {
        let url = format!("{}{PATH}", collector.endpoint.trim_end_matches('/'));
        let url: Uri = url.parse().with_context(|| format!("{url:?} is no address"))?;
        let http = client(url.scheme_str() == Some("https"), ANSWER);
        let http = http.context("cannot set up TLS towards the collector of traces")?;
        Ok(Self { from, http, url, about: collector.about.clone(), counts })
    }

    /// Sends until `stop`; then what is left.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let stopped = tokio::select! {
                () = gather(&mut self.from, &mut batch) => false,
                () = stop.cancelled() => true,
            };
            if stopped || batch.is_empty() {
                break; // told to, or nobody is there any more who makes spans
            }
            if stop.run_until_cancelled(self.offer(&batch)).await.is_none() {
                break;
            }
            batch.clear();
        }
        while let Ok(span) = self.from.try_recv() {
            batch.push(span);
        }
        for last in batch.chunks(BATCH) {
            if let Err(Untaken::Now(why) | Untaken::Ever(why)) = self.send(last).await {
                return self.lost(batch.len(), &why);
            }
        }
    }

    /// Offers a batch until it is taken or there is no point any more.
    async fn offer(&self, batch: &[Finished]) {
        let mut pauses = PAUSES.iter();
        let why = loop {
            match self.send(batch).await {
                Ok(()) => return,
                Err(Untaken::Ever(why)) => break why,
                Err(Untaken::Now(why)) => match pauses.next() {
                    Some(pause) => sleep(*pause).await,
                    None => break why,
                },
            }
        };
        self.lost(batch.len(), &why);
    }

    fn lost(&self, spans: usize, why: &str) {
        self.counts.dropped.inc_by(spans as u64);
        tracing::warn!(spans, why, collector = %self.url, "spans were not taken and are dropped");
    }

    async fn send(&self, batch: &[Finished]) -> Result<(), Untaken> {
        let body = Full::new(Bytes::from(otlp::request(&self.about, batch)));
        let request = Request::builder()
            .method(Method::POST)
            .uri(self.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|error| Untaken::Ever(error.to_string()))?;
        let sending = async {
            let answer = self.http.request(request).await.map_err(|error| error.to_string())?;
            let status = answer.status();
            // read to its end, so that the connection can be used again
            let rest = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
            rest.map(|_| status).map_err(|error| error.to_string())
        };
        let sent = timeout(ANSWER, sending).await;
        let status = sent
            .map_err(|_| Untaken::Now(format!("no answer in {} s", ANSWER.as_secs())))?
            .map_err(Untaken::Now)?;
        if status.is_success() {
            self.counts.exported.inc_by(batch.len() as u64);
            return Ok(());
        }
        let later = matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS
                | StatusCode::BAD_GATEWAY
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT
        );
        let why = format!("it answered {status}");
        Err(if later { Untaken::Now(why) } else { Untaken::Ever(why) })
    }
}

/// Waits for a span, and then for as many as come in a short time. What was gathered stays in
/// `batch` when this is dropped.
async fn gather(from: &mut mpsc::Receiver<Finished>, batch: &mut Vec<Finished>) {
    from.recv_many(batch, BATCH).await;
    let more = async {
        while batch.len() < BATCH && from.recv_many(batch, BATCH - batch.len()).await > 0 {}
    };
    let _full = timeout(GATHER, more).await.is_ok();
}
