//! Between agents and MCP servers: every call is recorded before it takes effect.
//!
//! # Life of a call
//! 1. `server` accepts the connection and reads the head; `gate` holds `Host` and `Origin`
//!    against the names that the proxy is reached by; the path names one server.
//! 2. `call` is the straight line from here on, `visit` what stops it early. [`identity`] checks the credential, the body is
//!    read up to its limit, `envelope` reads id, method and names from its bytes (with `scan`,
//!    the one JSON reader that decides anything), `era` holds headers against body, `session`
//!    makes sure that a session is the caller's own, `traffic` that what it cancels or answers is
//!    open in it, `links` which call a call continues.
//! 3. [`inspect`] looks whose data is sent; `policy` makes a permit; `record` turns the permit
//!    into the right to send, once the opening of the call is durable.
//! 4. `upstream` spends that right: the same bytes, only the headers that `headers`
//!    names and that are on the record. `leg` opens a server's session anew when the server has
//!    forgotten it.
//! 5. `answer` (or `stream`, which frames events with `sse`) reads what comes back, and lets
//!    the client have the same bytes once the ending is durable; `stall` lets go of a client that
//!    does not take them. [`tools`] reads lists of tools, and what may not be used is cut out
//!    (`revise`, `splice`).
//!    At the common address of all servers `federation` says who is meant, and joins answers.
//! 6. Whatever goes wrong is one of [`errors`]. Whoever leaves, the call is ended by its `Drop`.
//!
//! No message is ever re-encoded: what an agent and a server exchange arrives byte for byte, or is
//! refused with an error that says why, and the refusal is recorded: one by one for callers who
//! are known, counted by the minute (`refusals`) for strangers.

mod answer;
mod call;
pub mod config;
mod envelope;
mod era;
pub mod errors;
mod federation;
mod gate;
mod headers;
pub mod identity;
pub mod inspect;
mod leg;
mod links;
mod metrics;
mod parked;
mod payload;
mod policy;
mod record;
mod refusals;
mod revise;
mod scan;
mod server;
mod session;
mod spans;
mod splice;
pub mod sse;
mod stall;
mod stream;
#[cfg(test)]
mod tests;
pub mod tools;
mod traffic;
mod upstream;
mod visit;

use std::collections::HashMap;
use std::sync::Arc;

use custody_journal::Writer;
use futures::future::join_all;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use config::{Config, Limits, Mistake, OnAuditFailure, Server};
pub use identity::{Identity, StaticKey};
pub use metrics::{Page, Ready, Watched};
pub use upstream::{TlsError, reach, tls_towards};

use federation::Federation;
use gate::Gate;
use identity::Authority;
use links::Links;
use metrics::Answers;
use parked::Parked;
use policy::Policy;
use record::Recorder;
use refusals::Refusals;
use session::Sessions;
use tools::Registry;
use traffic::Loose;
use upstream::{Desk, Heard, Upstream};

/// Why a proxy cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration is wrong.
    #[error("the proxy's configuration has mistakes: {}", join(.0))]
    Config(Vec<Mistake>),
    /// No TLS towards a server.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The listener is none.
    #[error("cannot listen: {0}")]
    Listen(#[from] std::io::Error),
}

fn join(mistakes: &[Mistake]) -> String {
    let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    lines.join("; ")
}

/// A server and the way to it.
struct Served {
    server: Server,
    upstream: Upstream,
    answers: Answers,
}

/// What all connections share.
struct Proxy {
    gate: Gate,
    authority: Authority,
    sessions: Sessions,
    parked: Arc<Parked>,
    loose: Loose,
    links: Links,
    servers: HashMap<String, Arc<Served>>,
    tools: Arc<Registry>,
    federation: Federation,
    recorder: Arc<Recorder>,
    refusals: Refusals,
    watched: Watched,
    max_message_bytes: usize,
    limits: Limits,
}

/// Serves `listener` until `shutdown`; returns when every call has been ended. The journal is the
/// caller's to close, afterwards.
///
/// # Errors
/// [`RunError`], before anything is served.
pub async fn run(
    listener: TcpListener,
    config: Config,
    writer: Writer,
    watched: Watched,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    let listen = listener.local_addr()?;
    let mistakes = config.mistakes(listen);
    if !mistakes.is_empty() {
        return Err(RunError::Config(mistakes));
    }
    let federation = Federation::new(&config.servers, config.control.clone());
    let mut servers = HashMap::with_capacity(config.servers.len());
    let (desk, heard) = Desk::new();
    for server in config.servers {
        let (most, limits) = (config.max_message_bytes, &config.limits);
        let upstream = Upstream::new(&server, most, limits, &desk, &watched.metrics)?;
        let answers = watched.metrics.answers(&server.name);
        servers.insert(server.name.clone(), Arc::new(Served { server, upstream, answers }));
    }
    let recorder = Recorder::new(
        writer,
        config.audit_wait,
        config.max_message_bytes as u64,
        Policy::new(config.policy_version),
        watched.metrics.clone(),
    );
    let proxy = Proxy {
        gate: Gate::new(listen, &config.allowed_hosts, &config.allowed_origins),
        authority: Authority::new(&config.identity),
        sessions: Sessions::new(config.limits.sessions, config.limits.session_idle),
        parked: Arc::default(),
        loose: Loose::default(),
        links: Links::default(),
        servers,
        tools: Registry::new(config.control),
        federation,
        recorder,
        refusals: Refusals::default(),
        watched,
        max_message_bytes: config.max_message_bytes,
        limits: config.limits,
    };
    let proxy = Arc::new(proxy);
    let recording = tokio::spawn(record_refusals(Arc::clone(&proxy)));
    let over = CancellationToken::new();
    let noting = tokio::spawn(record_notes(Arc::clone(&proxy), heard, over.clone()));
    let closing = tokio::spawn(leg::close_forgotten(Arc::clone(&proxy)));
    server::serve(listener, Arc::clone(&proxy), shutdown).await;
    join_all(proxy.servers.values().map(|served| served.upstream.close())).await;
    over.cancel();
    if noting.await.is_err() {
        tracing::error!("what servers said beside messages could not be recorded");
    }
    recording.abort();
    closing.abort();
    proxy.recorder.refused(proxy.refusals.take()).await;
    Ok(())
}

/// Records what servers say beside messages, until it is over and nothing is left.
async fn record_notes(proxy: Arc<Proxy>, mut heard: Heard, over: CancellationToken) {
    loop {
        let note = tokio::select! {
            biased;
            note = heard.recv() => note,
            () = over.cancelled() => None,
        };
        let Some(note) = note else { return };
        if let Some(served) = proxy.servers.get(&*note.server) {
            proxy.recorder.note(&served.server, note).await;
        }
    }
}

async fn record_refusals(proxy: Arc<Proxy>) {
    loop {
        tokio::time::sleep(refusals::COUNT_FOR).await;
        // not to be cut off between taking and recording
        let at_work = Arc::clone(&proxy);
        let work = async move { at_work.recorder.refused(at_work.refusals.take()).await };
        if tokio::spawn(work).await.is_err() {
            tracing::error!("refused strangers could not be recorded");
        }
    }
}
