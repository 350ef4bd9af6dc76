//! What a proxy counts and shows: `/metrics`, and whether it is ready.
//!
//! Labels hold names from the configuration and words of our own only: no people, no patients, no
//! tools, nothing that a caller chose.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use custody_schemas::words::Status;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::errors::Failure;

/// Upper bounds of the buckets for waits on the journal, in seconds.
const AUDIT_BUCKETS: [f64; 13] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
/// The same for waits on servers.
const UPSTREAM_BUCKETS: [f64; 11] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0];

/// Names and values.
type Labels<const N: usize> = [(&'static str, Cow<'static, str>); N];
type Counters<const N: usize> = Family<Labels<N>, Counter>;
type Gauges = Family<Labels<1>, Gauge>;
type Histograms = Family<Labels<1>, Histogram, fn() -> Histogram>;

/// Whether something outside of the proxy lets it work; what is wrong otherwise.
pub type Ready = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What `/metrics` shows: everything that the process counts.
pub type Page = Arc<Mutex<Registry>>;

/// How a proxy is watched.
#[derive(Clone)]
pub struct Watched {
    pub(crate) metrics: Metrics,
    page: Page,
    /// What must be well beside the journal.
    pub(crate) ready: Ready,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("metrics", &self.metrics).finish_non_exhaustive()
    }
}

impl Default for Watched {
    /// A proxy that is alone in its process.
    fn default() -> Self {
        Self::new(Page::default(), Arc::new(|| Ok(())))
    }
}

impl Watched {
    /// Counts that `page` shows from now on; `/readyz` says so only if `ready` does.
    #[must_use]
    pub fn new(page: Page, ready: Ready) -> Self {
        let metrics = Metrics::register(&mut page.lock().unwrap_or_else(PoisonError::into_inner));
        Self { metrics, page, ready }
    }

    /// The page in OpenMetrics text, and its media type.
    pub(crate) fn text(&self) -> (&'static str, String) {
        let mut text = String::with_capacity(16 << 10);
        let page = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        if encode(&mut text, &page).is_err() {
            text.clear(); // a string takes everything
        }
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", text)
    }
}

/// What waits for the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The opening of a call.
    Opening,
    /// Its ending.
    Ending,
    /// A refusal, or a message beside calls.
    Other,
}

/// What a proxy counts. Clones count together.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    ended: Counters<2>,
    in_flight: Gauge,
    refused: Counters<1>,
    relayed: Counter,
    unavailable: Counter,
    unrecorded: Counter,
    audit_wait: Histograms,
    waits: Waits,
    upstream: Histograms,
    connections: Gauge,
    sessions: Gauge,
    programs: Gauges,
    programs_started: Counters<1>,
    programs_failed: Counters<1>,
    breakers: Gauges,
    breakers_opened: Counters<1>,
}

/// How long things waited for the journal.
#[derive(Clone, Debug)]
struct Waits {
    opening: Histogram,
    ending: Histogram,
    other: Histogram,
}

impl Waits {
    fn of(all: &Histograms) -> Self {
        let step = |step: &'static str| all.get_or_create_owned(&[("step", step.into())]);
        Self { opening: step("opening"), ending: step("ending"), other: step("other") }
    }
}

/// How long one server takes to begin its answers.
#[derive(Clone, Debug)]
pub(crate) struct Answers(Histogram);

impl Answers {
    /// It began an answer, or gave none, after it was asked at `started`.
    pub(crate) fn came(&self, started: Instant) {
        self.0.observe(started.elapsed().as_secs_f64());
    }
}

/// What is counted of one server that is a program.
#[derive(Clone, Debug, Default)]
pub(crate) struct Programs {
    running: Gauge,
    started: Counter,
    failed: Counter,
}

impl Programs {
    /// One more was started; it runs until this is dropped.
    pub(crate) fn started(&self) -> Running {
        self.started.inc();
        self.running.inc();
        Running(self.running.clone())
    }

    /// One could not be started, or has ended although nobody wished it.
    pub(crate) fn failed(&self) {
        self.failed.inc();
    }
}

/// A program that runs.
#[derive(Debug)]
pub(crate) struct Running(Gauge);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// What is counted of the breaker before one server.
#[derive(Clone, Debug, Default)]
pub(crate) struct BreakerCounts {
    open: Gauge,
    opened: Counter,
}

impl BreakerCounts {
    /// The server is left alone from now on, if it was not before.
    pub(crate) fn opened(&self) {
        if self.open.set(1) == 0 {
            self.opened.inc();
        }
    }

    /// The server answers.
    pub(crate) fn closed(&self) {
        self.open.set(0);
    }
}

impl Metrics {
    /// Counts that `registry` shows from now on.
    fn register(registry: &mut Registry) -> Self {
        let audit: fn() -> Histogram = || Histogram::new(AUDIT_BUCKETS);
        let upstream: fn() -> Histogram = || Histogram::new(UPSTREAM_BUCKETS);
        let audit_wait = Family::new_with_constructor(audit);
        let metrics = Self {
            ended: Family::default(),
            in_flight: Gauge::default(),
            refused: Family::default(),
            relayed: Counter::default(),
            unavailable: Counter::default(),
            unrecorded: Counter::default(),
            waits: Waits::of(&audit_wait),
            audit_wait,
            upstream: Family::new_with_constructor(upstream),
            connections: Gauge::default(),
            sessions: Gauge::default(),
            programs: Family::default(),
            programs_started: Family::default(),
            programs_failed: Family::default(),
            breakers: Family::default(),
            breakers_opened: Family::default(),
        };
        metrics.show(registry.sub_registry_with_prefix("custody_proxy"));
        metrics
    }

    fn show(&self, to: &mut Registry) {
        to.register("calls_ended", "Calls by server and ending", self.ended.clone());
        to.register("calls_in_flight", "Calls without an ending", self.in_flight.clone());
        to.register("refused", "Requests refused before they were sent", self.refused.clone());
        to.register("messages_relayed", "Messages beside calls", self.relayed.clone());
        to.register(
            "audit_unavailable",
            "Requests not forwarded because they could not be recorded (47001)",
            self.unavailable.clone(),
        );
        to.register(
            "audit_outcome_unrecorded",
            "Answers withheld because they could not be recorded (47002)",
            self.unrecorded.clone(),
        );
        let wait = "How long openings, endings and other events took to be durable";
        to.register_with_unit("audit_wait", wait, Unit::Seconds, self.audit_wait.clone());
        let answer = "How long servers took to begin their answers";
        to.register_with_unit("upstream", answer, Unit::Seconds, self.upstream.clone());
        to.register("connections", "Open connections of clients", self.connections.clone());
        to.register("sessions", "Sessions of clients", self.sessions.clone());
        self.show_servers(to);
    }

    fn show_servers(&self, to: &mut Registry) {
        to.register("programs", "Processes of servers that are programs", self.programs.clone());
        let started = "Processes that were started for servers that are programs";
        to.register("programs_started", started, self.programs_started.clone());
        let failed = "Programs that could not be started or ended although nobody wished it";
        to.register("programs_failed", failed, self.programs_failed.clone());
        let open = "Whether a server that kept failing is left alone";
        to.register("breaker_open", open, self.breakers.clone());
        let opened = "How often a server was left alone because it kept failing";
        to.register("breaker_opened", opened, self.breakers_opened.clone());
    }

    /// What is counted of `server`, which is a program.
    pub(crate) fn programs(&self, server: &str) -> Programs {
        let labels = [("server", Cow::Owned(server.to_owned()))];
        Programs {
            running: self.programs.get_or_create_owned(&labels),
            started: self.programs_started.get_or_create_owned(&labels),
            failed: self.programs_failed.get_or_create_owned(&labels),
        }
    }

    /// What is counted of the breaker before `server`.
    pub(crate) fn breaker(&self, server: &str) -> BreakerCounts {
        let labels = [("server", Cow::Owned(server.to_owned()))];
        BreakerCounts {
            open: self.breakers.get_or_create_owned(&labels),
            opened: self.breakers_opened.get_or_create_owned(&labels),
        }
    }

    /// A call's opening has been handed over.
    pub(crate) fn opened(&self) {
        self.in_flight.inc();
    }

    /// A call that was opened has ended.
    pub(crate) fn ended(&self, server: Option<&str>, status: &Status) {
        self.in_flight.dec();
        let server = server.unwrap_or_default().to_owned();
        let status = word(status);
        self.ended.get_or_create(&[("server", server.into()), ("status", status.into())]).inc();
    }

    /// A request was refused.
    pub(crate) fn refused(&self, failure: Failure) {
        self.refused.get_or_create(&[("reason", failure.reason().into())]).inc();
    }

    /// A message passed.
    pub(crate) fn relayed(&self) {
        self.relayed.inc();
    }

    /// Error 47001 was given.
    pub(crate) fn unavailable(&self) {
        self.unavailable.inc();
    }

    /// Error 47002 was given.
    pub(crate) fn unrecorded(&self) {
        self.unrecorded.inc();
    }

    /// Something waited for the journal since `started`, with success or without.
    pub(crate) fn waited(&self, step: Step, started: Instant) {
        let waits = match step {
            Step::Opening => &self.waits.opening,
            Step::Ending => &self.waits.ending,
            Step::Other => &self.waits.other,
        };
        waits.observe(started.elapsed().as_secs_f64());
    }

    /// How long `server` takes.
    pub(crate) fn answers(&self, server: &str) -> Answers {
        Answers(self.upstream.get_or_create_owned(&[("server", server.to_owned().into())]))
    }

    /// A client connected.
    pub(crate) fn connected(&self) {
        self.connections.inc();
    }

    /// So many sessions are remembered.
    pub(crate) fn sessions(&self, count: usize) {
        self.sessions.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A client left.
    pub(crate) fn left(&self) {
        self.connections.dec();
    }
}

/// A status as a label; words of later versions count as unknown.
pub(crate) fn word(status: &Status) -> &'static str {
    match status {
        Status::Ok => "ok",
        Status::ToolError => "tool_error",
        Status::RpcError => "rpc_error",
        Status::HttpError => "http_error",
        Status::Timeout => "timeout",
        Status::Unreachable => "unreachable",
        Status::Cancelled => "cancelled",
        Status::Abandoned => "abandoned",
        Status::TooLarge => "too_large",
        Status::NotForwarded => "not_forwarded",
        Status::AuditFailed => "audit_failed",
        Status::Unknown | Status::Other(_) => "unknown",
    }
}
