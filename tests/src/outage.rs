//! Kafka goes away while calls pass: what callers see, and that everything arrives afterwards.
//!
//! A proxy that records locally and one that waits for Kafka are called without pause; the broker is
//! killed, stays away, and comes back with what it had. The test of the product does this for some
//! seconds, `bench outage` for as long as one likes.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::cluster::{Cluster, Plan, Role};
use crate::services::{Kafka, Store};
use crate::storm::{Seen, Storm, UNAVAILABLE, UNRECORDED};
use crate::upstream::{Behaviour, Upstream};
use crate::{check, metrics, wait};

/// How long a caller of the waiting proxy is held at most.
const AUDIT_WAIT: Duration = Duration::from_secs(2);

/// What was seen.
#[derive(Debug)]
pub struct Told {
    /// How long the broker was away.
    pub away: Duration,
    /// Calls answered by the proxy that records locally; none of them was refused.
    pub local: usize,
    /// The longest that one of them took.
    pub local_slowest: Duration,
    /// Calls answered by the proxy that waits for Kafka.
    pub replicated: usize,
    /// Its refusals by code.
    pub refused: BTreeMap<i64, usize>,
    /// The longest that one of its callers waited.
    pub replicated_slowest: Duration,
    /// Entries that waited for Kafka when it came back.
    pub waited: u64,
    /// From Kafka's return until every answered call was in SQL.
    pub caught_up: Duration,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "away {:.0?}: {} local calls answered (slowest {:.0?}), none refused; {} replicated ones \
             (slowest {:.0?}), refused {:?}; {} entries waited; all in SQL, once and in order, {:.1?} \
             after it was back",
            self.away,
            self.local,
            self.local_slowest,
            self.replicated,
            self.replicated_slowest,
            self.refused,
            self.waited,
            self.caught_up,
        )
    }
}

/// Lets Kafka be away for `away` and checks all that must hold.
///
/// # Errors
/// With the first thing that does not hold.
pub async fn run(away: Duration) -> anyhow::Result<Told> {
    let (kafka, store) = (Kafka::own(&[])?, Store::shared()?);
    let upstream = Upstream::start(Behaviour::Echo).await?;
    let folder = tempfile::tempdir()?;
    let cluster =
        Plan::new(&kafka, &store).server("s", &upstream.url(), true).build(folder.path())?;
    cluster.prepare(&["proxy-1", "proxy-2", "query-1"])?;
    let local = cluster.start("proxy-1")?;
    let replicated = waiting(&cluster)?;
    let worker = cluster.start("ingest-1")?;
    let query = cluster.start("query-1")?;
    let pause = Duration::from_millis(20);
    let calm = Storm::start("local", &[local.server("s")], 3, pause);
    let strict = Storm::start("replicated", &[replicated.server("s")], 3, pause);
    wait::until("calls through both", || async {
        let both = calm.seen().answered.len().min(strict.seen().answered.len());
        (both >= 20 && ready(&local).await && ready(&replicated).await).then_some(())
    })
    .await?;

    kafka.tell("kill", None)?;
    let gone = Instant::now();
    while_away(away, &local, &replicated, &calm, &strict).await?;
    let waited = metrics::sum(&local.url, "custody_ship_unshipped_entries").await?;
    let away = gone.elapsed();
    kafka.start()?;
    let back = Instant::now();
    wait::until("replicated calls again, and no lag", || async {
        let lag = metrics::sum(&local.url, "custody_ship_unshipped_entries").await.ok()?;
        (ready(&replicated).await && lag < 100.0).then_some(())
    })
    .await?;
    let (calm, strict) = (calm.end().await?, strict.end().await?);
    callers_were_told(&calm, &strict)?;
    check::answered_calls_are_there_once(&query.url, &[&calm, &strict], away + wait::PATIENCE)
        .await?;
    let caught_up = back.elapsed();
    check::refused_calls_did_not_run(&query.url, &strict).await?;
    drop(worker);
    Ok(Told {
        away,
        local: calm.answered.len(),
        local_slowest: calm.slowest,
        replicated: strict.answered.len(),
        refused: strict.refused.iter().map(|(code, calls)| (*code, calls.len())).collect(),
        replicated_slowest: strict.slowest,
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        waited: waited as u64,
        caught_up,
    })
}

/// A proxy whose calls wait for Kafka.
fn waiting(cluster: &Cluster) -> anyhow::Result<Role> {
    let mut command = cluster.command("proxy-2")?;
    command.env("CUSTODY__PROXY__DURABILITY", "replicated");
    command.env("CUSTODY__PROXY__AUDIT_WAIT_MS", AUDIT_WAIT.as_millis().to_string());
    cluster.start_with("proxy-2", command)
}

/// Whether a role says that it can do its work.
async fn ready(role: &Role) -> bool {
    role.ready().await.is_ok_and(|said| said.status.is_success())
}

/// Refusals and readiness show that Kafka is away; local calls go on until the time is over.
async fn while_away(
    away: Duration,
    local: &Role,
    replicated: &Role,
    calm: &Storm,
    strict: &Storm,
) -> anyhow::Result<()> {
    let (gone, before) = (Instant::now(), calm.seen().answered.len());
    wait::until("replicated calls refused and the proxy not ready", || async {
        let refused = strict.seen().refused.contains_key(&UNAVAILABLE);
        (refused && !ready(replicated).await).then_some(())
    })
    .await?;
    wait::within(away + wait::PATIENCE, "local calls go on, and the lag shows", || async {
        let more = calm.seen().answered.len() >= before + 50;
        let lag = metrics::sum(&local.url, "custody_ship_lag_seconds").await.ok()?;
        (more && lag >= 2.0 && gone.elapsed() >= away).then_some(())
    })
    .await?;
    ensure!(ready(local).await, "local calls do not depend on Kafka");
    Ok(())
}

fn callers_were_told(calm: &Seen, strict: &Seen) -> anyhow::Result<()> {
    ensure!(calm.refused.is_empty() && calm.broken.is_empty(), "local: {:?}", calm.refused);
    let other = strict.refused.iter().find(|(code, _)| ![UNAVAILABLE, UNRECORDED].contains(code));
    ensure!(other.is_none(), "a refusal that says something else: {other:?}");
    ensure!(strict.broken.is_empty(), "a refusal is an answer: {:?}", strict.broken);
    let limit = 10 * AUDIT_WAIT;
    ensure!(strict.slowest < limit, "{:?}: it must not hang", strict.slowest);
    Ok(())
}
