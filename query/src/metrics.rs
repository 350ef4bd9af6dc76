//! What the query service counts, for `/metrics`.
//!
//! Labels are words of our own: nothing of a statement, of its parameters or of who asks.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::engine::Engine;
use crate::error::QueryError;

/// Upper bounds of the buckets for answers, in seconds.
const BUCKETS: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// What `/metrics` shows: everything that the process counts.
pub type Page = Arc<Mutex<Registry>>;

type Labels<const N: usize> = [(&'static str, Cow<'static, str>); N];

/// The page in OpenMetrics text, and its media type.
pub(crate) fn text(page: &Page) -> (&'static str, String) {
    let mut text = String::with_capacity(16 << 10);
    if encode(&mut text, &page.lock().unwrap_or_else(PoisonError::into_inner)).is_err() {
        text.clear(); // a string takes everything
    }
    ("application/openmetrics-text; version=1.0.0; charset=utf-8", text)
}

/// What is counted. Clones count together.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    questions: Family<Labels<2>, Counter>,
    seconds: Family<Labels<1>, Histogram, fn() -> Histogram>,
    rows: Counter,
    turned_away: Family<Labels<1>, Counter>,
}

impl Metrics {
    /// Counts that `page` shows from now on.
    pub(crate) fn register(page: &Page) -> Self {
        let seconds: fn() -> Histogram = || Histogram::new(BUCKETS);
        let metrics = Self {
            questions: Family::default(),
            seconds: Family::new_with_constructor(seconds),
            rows: Counter::default(),
            turned_away: Family::default(),
        };
        let mut page = page.lock().unwrap_or_else(PoisonError::into_inner);
        let to = page.sub_registry_with_prefix("custody_query");
        let questions = "Questions by kind and how they ended";
        to.register("questions", questions, metrics.questions.clone());
        let seconds = "How long answers took, to their last row";
        to.register_with_unit("answer", seconds, Unit::Seconds, metrics.seconds.clone());
        to.register("rows", "Rows handed over", metrics.rows.clone());
        let away = "Requests of people who may not ask";
        to.register("turned_away", away, metrics.turned_away.clone());
        metrics
    }

    /// A question was not taken on.
    pub(crate) fn refused(&self, kind: &str, error: &QueryError) {
        let (kind, outcome) = (kind.to_owned().into(), error.kind().into());
        self.questions.get_or_create(&[("kind", kind), ("outcome", outcome)]).inc();
    }

    /// An answer is over.
    pub(crate) fn ended(&self, kind: &str, error: Option<&QueryError>, took: Duration, rows: u64) {
        let kind: Cow<'static, str> = kind.to_owned().into();
        let outcome = error.map_or("ok", QueryError::kind).into();
        self.questions.get_or_create(&[("kind", kind.clone()), ("outcome", outcome)]).inc();
        self.seconds.get_or_create(&[("kind", kind)]).observe(took.as_secs_f64());
        self.rows.inc_by(rows);
    }

    /// Somebody may not ask.
    pub(crate) fn turned_away(&self, error: &QueryError) {
        let known = matches!(error, QueryError::Forbidden { .. });
        let reason = if known { "forbidden" } else { "unauthenticated" };
        self.turned_away.get_or_create(&[("reason", reason.into())]).inc();
    }
}

/// What an engine holds, asked when the page is.
struct Load(Weak<Engine>);

/// Shows on `page` what `engine` holds, for as long as it is there.
pub(crate) fn watch(page: &Page, engine: &Arc<Engine>) {
    let mut page = page.lock().unwrap_or_else(PoisonError::into_inner);
    page.register_collector(Box::new(Load(Arc::downgrade(engine))));
}

impl fmt::Debug for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Load").finish_non_exhaustive()
    }
}

impl Collector for Load {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(engine) = self.0.upgrade() else { return Ok(()) };
        let load = engine.load();
        let limit = engine.options.tail_bytes;
        let behind = usize::try_from(load.tail_behind).unwrap_or(usize::MAX);
        for (name, help, unit, value) in [
            ("custody_query_running", "Questions being answered", None, load.running),
            (
                "custody_query_tail",
                "Memory of rows that the lake does not hold yet",
                Some(Unit::Bytes),
                load.tail_bytes,
            ),
            (
                "custody_query_tail_behind",
                "Entries of the journal that are durable and in no answer yet",
                None,
                behind,
            ),
            (
                "custody_query_ready",
                "Whether questions can be recorded and answered with all that is durable",
                None,
                usize::from(load.ready),
            ),
            (
                "custody_query_tail_limit",
                "The most that these rows may take; beyond it answers are behind and say so",
                Some(Unit::Bytes),
                limit,
            ),
        ] {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let encoder =
                encoder.encode_descriptor(name, help, unit.as_ref(), gauge.metric_type())?;
            gauge.encode(encoder)?;
        }
        Ok(())
    }
}
