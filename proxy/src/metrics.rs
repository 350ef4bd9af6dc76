//! Counts for `/metrics`, in the Prometheus text format. No names of people, tools or patients.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use custody_schemas::words::Status;

/// The endings that are counted, in the order of the counters.
const STATUSES: [Status; 12] = [
    Status::Ok,
    Status::ToolError,
    Status::RpcError,
    Status::HttpError,
    Status::Timeout,
    Status::Unreachable,
    Status::Cancelled,
    Status::Abandoned,
    Status::TooLarge,
    Status::NotForwarded,
    Status::AuditFailed,
    Status::Unknown,
];

/// What a proxy counts.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    endings: [AtomicU64; STATUSES.len()],
    in_flight: AtomicI64,
    denied: AtomicU64,
    relayed: AtomicU64,
    unavailable: AtomicU64,
    unrecorded: AtomicU64,
    connections: AtomicI64,
}

impl Metrics {
    /// A call's opening is durable.
    pub(crate) fn opened(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// A call that was opened has ended.
    pub(crate) fn ended(&self, status: &Status) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        let known = STATUSES.iter().position(|known| known == status);
        if let Some(counter) = known.and_then(|i| self.endings.get(i)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A call was refused.
    pub(crate) fn denied(&self) {
        self.denied.fetch_add(1, Ordering::Relaxed);
    }

    /// A message passed.
    pub(crate) fn relayed(&self) {
        self.relayed.fetch_add(1, Ordering::Relaxed);
    }

    /// Error 47001 was given.
    pub(crate) fn unavailable(&self) {
        self.unavailable.fetch_add(1, Ordering::Relaxed);
    }

    /// Error 47002 was given.
    pub(crate) fn unrecorded(&self) {
        self.unrecorded.fetch_add(1, Ordering::Relaxed);
    }

    /// A client connected or left.
    pub(crate) fn connections(&self, change: i64) {
        self.connections.fetch_add(change, Ordering::Relaxed);
    }

    /// All of it as text.
    pub(crate) fn text(&self) -> String {
        let mut text = String::with_capacity(2048);
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut line = |name: &str, kind: &str, help: &str, values: &[(String, String)]| {
            let mut write = || -> std::fmt::Result {
                writeln!(text, "# HELP custody_proxy_{name} {help}")?;
                writeln!(text, "# TYPE custody_proxy_{name} {kind}")?;
                values.iter().try_for_each(|(labels, value)| {
                    writeln!(text, "custody_proxy_{name}{labels} {value}")
                })
            };
            write().is_ok()
        };
        let one = |value: String| vec![(String::new(), value)];
        let endings: Vec<_> = STATUSES
            .iter()
            .zip(&self.endings)
            .map(|(status, n)| (format!("{{status=\"{}\"}}", status.as_str()), get(n).to_string()))
            .collect();
        let gauge = |counter: &AtomicI64| one(counter.load(Ordering::Relaxed).to_string());
        let counter = |counter: &AtomicU64| one(get(counter).to_string());
        let _written = line("calls_ended_total", "counter", "Calls by ending.", &endings)
            && line(
                "calls_in_flight",
                "gauge",
                "Calls without an ending.",
                &gauge(&self.in_flight),
            )
            && line("calls_denied_total", "counter", "Calls refused.", &counter(&self.denied))
            && line(
                "messages_relayed_total",
                "counter",
                "Other messages.",
                &counter(&self.relayed),
            )
            && line(
                "audit_unavailable_total",
                "counter",
                "Calls not forwarded because they could not be recorded (47001).",
                &counter(&self.unavailable),
            )
            && line(
                "audit_outcome_unrecorded_total",
                "counter",
                "Answers withheld because they could not be recorded (47002).",
                &counter(&self.unrecorded),
            )
            && line("connections", "gauge", "Open connections.", &gauge(&self.connections));
        text
    }
}
