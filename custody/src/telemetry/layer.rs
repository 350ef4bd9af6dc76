//! Makes finished spans of a trace out of what `tracing` reports.
//!
//! A span belongs to its parent's trace, else to the one that its field `traceparent` names (W3C
//! Trace Context), else to a new one. Where the caller says that it does not sample, nothing is
//! kept. A span that the queue has no room for is dropped and counted; nobody waits here.

use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;
use tracing::Subscriber;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// The field that names the caller's span.
const TRACEPARENT: &str = "traceparent";
/// The field with the kind: `server`, `client`; absent for what happens inside.
const KIND: &str = "otel.kind";
/// The field that says that it failed.
const FAILED: &str = "otel.failed";

/// A value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    Number(i64),
    Truth(bool),
}

/// Which side of an exchange a span is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Side {
    /// Neither.
    #[default]
    Inside,
    /// It answers.
    Server,
    /// It asks.
    Client,
}

/// A span that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finished {
    pub(super) trace: u128,
    pub(super) span: u64,
    pub(super) parent: Option<u64>,
    pub(super) name: &'static str,
    pub(super) side: Side,
    pub(super) failed: bool,
    pub(super) began_at: SystemTime,
    pub(super) took: Duration,
    pub(super) attributes: Vec<(&'static str, Value)>,
}

/// A span that is not over.
struct Open {
    trace: u128,
    span: u64,
    parent: Option<u64>,
    sampled: bool,
    began_at: SystemTime,
    since: Instant,
    fields: Fields,
}

/// What a span says of itself.
#[derive(Default)]
struct Fields {
    traceparent: Option<Traceparent>,
    side: Side,
    failed: bool,
    attributes: Vec<(&'static str, Value)>,
}

/// A caller's place in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Traceparent {
    trace: u128,
    span: u64,
    sampled: bool,
}

impl Traceparent {
    /// Reads `version-trace-parent-flags`; nothing when it is anything else. Versions after 00 may
    /// say more behind the flags.
    fn parse(text: &str) -> Option<Self> {
        let (fields, more) = text.split_at_checked(55)?;
        let mut parts = fields.split('-');
        let [version, trace, span, flags] =
            [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
        let lower_hex = |part: &str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let lengths = [version.len(), trace.len(), span.len(), flags.len()] == [2, 32, 16, 2];
        let ends = more.is_empty() || (version != "00" && more.starts_with('-'));
        let hex = [version, trace, span, flags].into_iter().all(lower_hex);
        if !lengths || !hex || !ends || parts.next().is_some() || version == "ff" {
            return None;
        }
        let trace = u128::from_str_radix(trace, 16).ok().filter(|trace| *trace != 0)?;
        let span = u64::from_str_radix(span, 16).ok().filter(|span| *span != 0)?;
        let sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
        Some(Self { trace, span, sampled })
    }
}

/// Hands finished spans to the exporter.
pub(super) struct Spans {
    to: mpsc::Sender<Finished>,
    dropped: Counter,
}

impl Spans {
    pub(super) fn new(to: mpsc::Sender<Finished>, dropped: Counter) -> Self {
        Self { to, dropped }
    }
}

/// A random number that is not 0.
fn id<T>() -> T
where
    T: Default + PartialEq,
    rand::distr::StandardUniform: rand::distr::Distribution<T>,
{
    loop {
        let id = rand::random();
        if id != T::default() {
            return id;
        }
    }
}

impl<S> Layer<S> for Spans
where
    S: Subscriber + for<'l> LookupSpan<'l>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, span: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let Some(span) = context.span(span) else { return };
        let place = |open: &Open| (open.trace, open.span, open.sampled);
        let around = span.parent().and_then(|around| around.extensions().get().map(place));
        let caller = fields.traceparent.map(|caller| (caller.trace, caller.span, caller.sampled));
        let (trace, parent, sampled) = match around.or(caller) {
            Some((trace, parent, sampled)) => (trace, Some(parent), sampled),
            None => (id(), None, true),
        };
        let (began_at, since) = (SystemTime::now(), Instant::now());
        span.extensions_mut().replace(Open {
            trace,
            span: id(),
            parent,
            sampled,
            began_at,
            since,
            fields,
        });
    }

    fn on_record(&self, span: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(span) else { return };
        if let Some(open) = span.extensions_mut().get_mut::<Open>() {
            values.record(&mut open.fields);
        }
    }

    fn on_close(&self, span: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&span) else { return };
        let Some(open) = span.extensions_mut().remove::<Open>() else { return };
        if !open.sampled {
            return;
        }
        let finished = Finished {
            trace: open.trace,
            span: open.span,
            parent: open.parent,
            name: span.name(),
            side: open.fields.side,
            failed: open.fields.failed,
            began_at: open.began_at,
            took: open.since.elapsed(),
            attributes: open.fields.attributes,
        };
        if self.to.try_send(finished).is_err() {
            self.dropped.inc();
        }
    }
}

impl Fields {
    fn add(&mut self, field: &Field, value: Value) {
        self.attributes.push((field.name(), value));
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            TRACEPARENT => self.traceparent = Traceparent::parse(value),
            KIND => {
                self.side = match value {
                    "server" => Side::Server,
                    "client" => Side::Client,
                    _ => Side::Inside,
                }
            }
            _ => self.add(field, Value::Text(value.to_owned())),
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        match field.name() {
            FAILED => self.failed = value,
            _ => self.add(field, Value::Truth(value)),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, Value::Number(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, Value::Number(i64::try_from(value).unwrap_or(i64::MAX)));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, Value::Text(format!("{value:?}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read_as_the_standard_says_and_anything_else_is_none() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let read = Traceparent::parse(good).unwrap();
        assert_eq!(read.trace, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!((read.span, read.sampled), (0xb7ad_6b71_6920_3331, true));
        assert!(!Traceparent::parse(&good.replace("-01", "-02")).unwrap().sampled);
        assert!(Traceparent::parse(&format!("{}-more", good.replacen("00", "01", 1))).is_some());
        for wrong in [
            "",
            "00",
            &good[..54],
            &format!("{good}-"),
            &good.to_uppercase(),
            &good.replacen("00", "ff", 1),
            &good.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &good.replace("b7ad6b7169203331", &"0".repeat(16)),
            &good.replace('-', "_"),
            &"é".repeat(30),
        ] {
            assert_eq!(Traceparent::parse(wrong), None, "{wrong}");
        }
    }
}
