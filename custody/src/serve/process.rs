//! A process: its parts, started one after the other and ended in the order that loses nothing.

use std::future::Future;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::PoisonError;

use anyhow::Context;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::health::Page;

/// A running part and the way to stop it. Dropping it asks it to stop, too.
pub struct Part {
    name: &'static str,
    stop: CancellationToken,
    ended: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Part {
    /// Starts a part that works until its token is cancelled.
    pub fn start<F>(name: &'static str, run: impl FnOnce(CancellationToken) -> F) -> Self
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let ended = CancellationToken::new();
        let running = run(stop.clone());
        let guard = ended.clone().drop_guard();
        let task = tokio::spawn(async move {
            let _guard = guard;
            let result = running.await;
            if let Err(error) = &result {
                tracing::error!(error = crate::told(error), "{name} ended");
            }
            result
        });
        Self { name, stop, ended, task }
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.task.await.with_context(|| format!("{} broke off", self.name))?
    }
}

/// Parts in the order in which they are to end.
#[derive(Default)]
pub struct Process {
    /// What `/metrics` shows on every listener.
    pub page: Page,
    parts: Vec<Part>,
    addresses: Vec<(&'static str, SocketAddr)>,
}

impl Process {
    /// Adds a part that ends after those that are there.
    pub fn then(&mut self, part: Part) {
        self.parts.push(part);
    }

    /// Says where a part listens.
    pub fn listens(&mut self, name: &'static str, address: SocketAddr) {
        self.addresses.push((name, address));
    }

    /// Lets a part show what it counts.
    pub fn show<T>(&self, part: impl FnOnce(&mut Registry) -> T) -> T {
        part(&mut self.page.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where `name` listens.
    pub fn address(&self, name: &str) -> anyhow::Result<SocketAddr> {
        let found = self.addresses.iter().find(|(known, _)| *known == name);
        found.map(|(_, address)| *address).with_context(|| format!("{name} does not listen"))
    }

    /// Tells on standard output where each part listens: now all of them do.
    pub fn announce(&self) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        for (name, address) in &self.addresses {
            writeln!(out, "{name} http://{address}")?;
        }
        Ok(out.flush()?)
    }

    /// Works until `stopped`, or until a part ends by itself; then ends everything.
    pub async fn run(
        self,
        stopped: impl Future<Output = anyhow::Result<()>>,
    ) -> anyhow::Result<ExitCode> {
        let failed = tokio::select! {
            stopped = stopped => { stopped?; None }
            part = self.failed() => Some(part),
        };
        tracing::info!(
            "stopping: what is in flight is ended, and what is recorded goes on its way"
        );
        self.stop().await?;
        match failed {
            None => Ok(ExitCode::SUCCESS),
            Some(part) => anyhow::bail!("{part} ended by itself; its error stands above"),
        }
    }

    /// Waits until a part ends by itself; its name.
    async fn failed(&self) -> &'static str {
        let ends = self.parts.iter().map(|part| {
            Box::pin(async move {
                part.ended.cancelled().await;
                part.name
            })
        });
        futures::future::select_all(ends).await.0
    }

    /// Ends everything in order; the first error, after all have ended.
    pub async fn stop(self) -> anyhow::Result<()> {
        let mut result = Ok(());
        for part in self.parts {
            result = result.and(part.stop().await);
        }
        result
    }
}

/// A listener on a configured address.
pub async fn listen(address: SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}: choose another {key}, or stop who listens there")
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    type Ended = Arc<Mutex<Vec<&'static str>>>;

    fn part(name: &'static str, ended: &Ended, result: Result<(), &'static str>) -> Part {
        let ended = Arc::clone(ended);
        Part::start(name, move |stop| async move {
            stop.cancelled().await;
            ended.lock().unwrap().push(name);
            result.map_err(anyhow::Error::msg)
        })
    }

    #[tokio::test]
    async fn parts_end_one_after_the_other_and_a_failure_keeps_none_from_ending() {
        let ended = Ended::default();
        let mut process = Process::default();
        process.then(part("proxy", &ended, Ok(())));
        process.then(part("writer", &ended, Err("the disk is full")));
        process.then(part("shipper", &ended, Err("Kafka is away")));
        let error = process.run(async { Ok(()) }).await.unwrap_err();
        assert_eq!(*ended.lock().unwrap(), ["proxy", "writer", "shipper"]);
        assert_eq!(error.to_string(), "the disk is full");
    }

    #[tokio::test]
    async fn a_part_that_ends_by_itself_ends_the_process_and_is_named() {
        let ended = Ended::default();
        let mut process = Process::default();
        process.then(part("proxy", &ended, Ok(())));
        process.then(Part::start("ingest", |_| async { Ok(()) }));
        let error = process.run(std::future::pending()).await.unwrap_err();
        assert!(error.to_string().starts_with("ingest ended by itself"), "{error}");
        assert_eq!(*ended.lock().unwrap(), ["proxy"]);
    }
}
