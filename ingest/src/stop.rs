//! How a pipeline is told to end: with everything that is durable by now, or as it stands.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// How long after a stop something that was begun before, or is begun then, may still take.
const WITHIN: Duration = Duration::from_secs(10);

/// The order to end, given at most once in each form.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop {
    drain: CancellationToken,
    leave: CancellationToken,
}

impl Stop {
    /// Read what is durable by now, commit it, end.
    pub(crate) fn drain(&self) {
        self.drain.cancel();
    }

    /// Read nothing more, commit what has been read, end: somebody else goes on.
    pub(crate) fn leave(&self) {
        self.leave.cancel();
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.leave.is_cancelled()
    }

    pub(crate) fn is_requested(&self) -> bool {
        self.drain.is_cancelled() || self.is_leaving()
    }

    pub(crate) async fn requested(&self) {
        tokio::select! {
            () = self.drain.cancelled() => {}
            () = self.leave.cancelled() => {}
        }
    }

    /// Ends when what is begun now has had its time after a stop.
    pub(crate) async fn patience(&self) {
        self.requested().await;
        tokio::time::sleep(WITHIN).await;
    }

    /// Waits, but not beyond a stop.
    pub(crate) async fn pause(&self, pause: Duration) {
        tokio::select! {
            () = self.requested() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}
