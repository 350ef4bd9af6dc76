//! Streamable HTTP to one server.
//!
//! The message goes as it came. A server that has failed several times in a row is left alone for
//! a while: callers hear at once that it cannot be reached, and nothing is sent. Then one call is
//! let through to see whether it is back.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{Response, StatusCode};
use tokio::time::Instant;

use super::peer::Peer;
use super::reach::Breaker;
use super::{Body, NoAnswer, Outgoing};
use crate::metrics::BreakerCounts;
use crate::record::Cleared;

/// The longest pause.
const LONGEST: Duration = Duration::from_secs(60);

/// One server, with its own connections.
#[derive(Debug)]
pub(crate) struct Http {
    peer: Peer,
    circuit: Circuit,
}

impl Http {
    /// The server that `peer` is.
    pub(super) fn new(name: &str, peer: Peer, breaker: Breaker, counts: BreakerCounts) -> Self {
        Self { peer, circuit: Circuit::new(name, breaker, counts) }
    }

    /// Sends a request whose opening is durable.
    pub(super) async fn send(
        &self,
        _cleared: Cleared,
        outgoing: Outgoing,
    ) -> Result<Response<Body>, NoAnswer> {
        let trial = self.circuit.enter(Instant::now())?;
        let Outgoing { method, headers, bytes, caller } = outgoing;
        let sent = self.peer.send(caller.principal, method, &self.peer.url, headers, bytes);
        let answer = sent.await;
        match &answer {
            Ok(answer) if !is_outage(answer.status()) => self.circuit.worked(),
            Ok(_) | Err(_) => self.circuit.failed(Instant::now()),
        }
        drop(trial);
        answer.map(|answer| answer.map(Body::Http))
    }
}

/// Statuses by which something before a server says that it is not there.
fn is_outage(status: StatusCode) -> bool {
    let outages =
        [StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT];
    outages.contains(&status)
}

/// Whether a server is left alone.
#[derive(Debug)]
struct Circuit {
    server: String,
    breaker: Breaker,
    counts: BreakerCounts,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// Until when it is left alone, and for how long that is in all.
    open: Option<(Instant, Duration)>,
    on_trial: bool,
}

impl Circuit {
    fn new(server: &str, breaker: Breaker, counts: BreakerCounts) -> Self {
        Self { server: server.to_owned(), breaker, counts, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a call through, or not.
    fn enter(&self, now: Instant) -> Result<Option<Trial<'_>>, NoAnswer> {
        let mut state = self.state();
        match state.open {
            None => Ok(None),
            Some((until, _)) if now < until || state.on_trial => Err(NoAnswer::Unreachable),
            Some(_) => {
                state.on_trial = true;
                Ok(Some(Trial(self)))
            }
        }
    }

    fn worked(&self) {
        let mut state = self.state();
        if state.open.is_some() {
            tracing::info!(server = %self.server, "a server answers again");
            self.counts.closed();
        }
        (state.failures, state.open) = (0, None);
    }

    fn failed(&self, now: Instant) {
        let mut state = self.state();
        state.failures = state.failures.saturating_add(1);
        if self.breaker.failures == 0 || state.failures < self.breaker.failures {
            return;
        }
        let pause = match state.open {
            None => self.breaker.pause,
            // failures of calls that were let through before
            Some((until, pause)) if now < until => pause,
            Some((_, pause)) => pause.saturating_mul(2),
        };
        let pause = pause.min(LONGEST);
        tracing::warn!(server = %self.server, pause_s = pause.as_secs_f32(), "a server is left alone");
        state.open = Some((now + pause, pause));
        self.counts.opened();
    }
}

/// The one call that shows whether a server is back. Dropped without a result it makes room for
/// another.
struct Trial<'c>(&'c Circuit);

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        self.0.state().on_trial = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circuit() -> Circuit {
        let breaker = Breaker { failures: 3, pause: Duration::from_secs(1) };
        Circuit::new("ehr", breaker, BreakerCounts::default())
    }

    #[test]
    fn a_server_that_failed_often_is_left_alone_and_then_tried_by_one_call() {
        let circuit = circuit();
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        for _ in 0..3 {
            assert!(circuit.enter(began).is_ok());
            circuit.failed(began);
        }
        assert!(circuit.enter(at(999)).is_err());
        let trial = circuit.enter(at(1001)).unwrap();
        assert!(circuit.enter(at(1001)).is_err(), "one call only");
        circuit.failed(at(1001));
        drop(trial);
        assert!(circuit.enter(at(3000)).is_err(), "the pause is longer now");
        drop(circuit.enter(at(3002)).unwrap());
        let trial = circuit.enter(at(3002)).unwrap();
        assert!(trial.is_some(), "a trial without a result makes room for another");
        circuit.worked();
        drop(trial);
        assert!(circuit.enter(at(3003)).unwrap().is_none());
    }

    #[test]
    fn one_success_makes_up_for_failures_and_a_breaker_can_be_off() {
        let circuit = circuit();
        let now = Instant::now();
        for _ in 0..10 {
            circuit.failed(now);
            circuit.failed(now);
            circuit.worked();
        }
        assert!(circuit.enter(now).is_ok());
        let breaker = Breaker { failures: 0, ..Breaker::default() };
        let off = Circuit::new("ehr", breaker, BreakerCounts::default());
        (0..100).for_each(|_| off.failed(now));
        assert!(off.enter(now).is_ok());
    }
}
