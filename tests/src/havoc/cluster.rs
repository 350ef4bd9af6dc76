//! A cluster whose roles, broker and store are killed, with faults before broker and store, and
//! workers that stand still.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

use super::Told;
use crate::cluster::{Cluster, Plan, Role};
use crate::fault::broker::{BrokerProxy, Line};
use crate::fault::store::StoreProxy;
use crate::services::{Kafka, OwnStore};
use crate::storm::{Seen, Storm};
use crate::upstream::{Behaviour, Upstream};
use crate::{check, metrics, question, wait};

/// Who is killed.
const ROLES: [&str; 5] = ["proxy-1", "proxy-2", "ingest-1", "ingest-2", "query-1"];
/// What happens to a worker's clock, and to which worker's.
const PAUSED: &str = "paused worker";
const STANDS_STILL: &str = "ingest-2";
/// A worker that is silent for so long loses its partitions.
const SESSION_MS: u32 = 3_000;
/// How long a process may take to come back where everything else is slow.
const COMES_BACK_IN: Duration = Duration::from_secs(120);

/// Everything that runs.
struct Havoc {
    random: StdRng,
    cluster: Cluster,
    folder: TempDir,
    kafka: Kafka,
    broker: BrokerProxy,
    store: OwnStore,
    before_store: StoreProxy,
    upstream: Upstream,
    ports: BTreeMap<&'static str, u16>,
    roles: BTreeMap<&'static str, Role>,
    told: Told,
}

/// Kills `kills` processes of a new cluster under load, then checks everything.
///
/// # Errors
/// With the first thing that does not hold; the cluster's diagnostics are kept then, and named.
pub async fn run(seed: u64, kills: u32) -> anyhow::Result<Told> {
    let begun = Instant::now();
    let mut havoc = Havoc::start(seed).await?;
    match havoc.rage(kills).await {
        Ok(()) => Ok(Told { took: begun.elapsed(), ..havoc.told }),
        Err(error) => {
            havoc.roles.clear();
            let kept = havoc.folder.keep();
            Err(error).with_context(|| format!("seed {seed}; diagnostics in {}", kept.display()))
        }
    }
}

/// A port that nobody has now: roles keep theirs when they come back.
fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Havoc {
    async fn start(seed: u64) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let (broker, store) = (BrokerProxy::start().await?, OwnStore::new()?);
        let kafka = Kafka::own(&["--advertise", &broker.port.to_string()])?;
        broker.before(kafka.facts.get("direct").context("the broker's own address")?)?;
        let before_store = StoreProxy::start(&store.store, seed).await?;
        let upstream = Upstream::start(Behaviour::Echo).await?;
        let seen = before_store.seen_through(&store.store);
        let mut plan = Plan::new(&kafka, &seen).server("s", &upstream.url(), true);
        plan.options = format!("\"session.timeout.ms\" = {SESSION_MS}\n");
        plan.query = "deadline_ms = 300000\n".to_owned();
        let cluster = plan.build(folder.path())?;
        cluster.prepare(&["proxy-1", "proxy-2", "query-1"])?;
        let ports = ROLES.into_iter().map(|name| Ok((name, free_port()?)));
        let mut havoc = Self {
            random: StdRng::seed_from_u64(seed),
            ports: ports.collect::<anyhow::Result<_>>()?,
            roles: BTreeMap::new(),
            told: Told::default(),
            cluster,
            folder,
            kafka,
            broker,
            store,
            before_store,
            upstream,
        };
        // Only a worker makes the lake.
        for name in ["ingest-1", "ingest-2", "proxy-1", "proxy-2", "query-1"] {
            havoc.come_back(name).await?;
        }
        Ok(havoc)
    }

    /// Starts a role at its port; again if something that it needs is still away.
    async fn come_back(&mut self, name: &'static str) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let mut command = self.cluster.command(name)?;
            let kind = name.split('-').next().unwrap_or(name).to_uppercase();
            let address = format!("127.0.0.1:{}", self.ports[name]);
            command.env(format!("CUSTODY__{kind}__LISTEN"), address);
            if name == "proxy-2" {
                command.env("CUSTODY__PROXY__DURABILITY", "replicated");
                command.env("CUSTODY__PROXY__AUDIT_WAIT_MS", "2000");
            }
            match tokio::task::block_in_place(|| self.cluster.start_with(name, command)) {
                Ok(role) => {
                    self.roles.insert(name, role);
                    return Ok(());
                }
                Err(error) if begun.elapsed() > COMES_BACK_IN => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }

    async fn rage(&mut self, kills: u32) -> anyhow::Result<()> {
        let urls = ["proxy-1", "proxy-2"].map(|name| self.roles[name].server("s"));
        let storm = Storm::start("tool", &urls, 4, Duration::from_millis(60));
        while self.told.kills.values().sum::<u32>() < kills {
            let weather = self.turn_weather()?;
            let victim = self.kill().await?;
            let pause = Duration::from_millis(self.random.random_range(0..1_500));
            tokio::time::sleep(pause).await;
            self.calm();
            if weather == PAUSED && victim != STANDS_STILL {
                self.roles[STANDS_STILL].signal("CONT")?;
            }
            self.revive(victim).await?;
            // Between two blows there is time to come to work, but not always enough of it.
            let pause = Duration::from_millis(self.random.random_range(0..1_500));
            tokio::time::sleep(pause).await;
        }
        let seen = storm.end().await?;
        self.everything_holds(&seen).await
    }

    /// What happens to the network, or to a worker's clock, while somebody is killed.
    fn turn_weather(&mut self) -> anyhow::Result<&'static str> {
        let weather = match self.random.random_range(0..100) {
            0..35 => "calm",
            35..65 => "faults of the store",
            65..70 => "silent store",
            70..76 => "late broker",
            76..82 => "silent broker",
            82..88 => "deaf broker",
            88..94 => "cut broker",
            _ => PAUSED,
        };
        match weather {
            "faults of the store" => self.before_store.set_faults(250),
            "silent store" => self.before_store.set_silent(true),
            "late broker" => self.broker.set(Line::Late(Duration::from_millis(80))),
            "silent broker" => self.broker.set(Line::Silent),
            "deaf broker" => self.broker.set(Line::Deaf),
            "cut broker" => self.broker.set(Line::Cut),
            PAUSED => self.roles[STANDS_STILL].signal("STOP")?,
            _ => {}
        }
        *self.told.weather.entry(weather.to_owned()).or_default() += 1;
        Ok(weather)
    }

    fn calm(&self) {
        self.before_store.set_faults(0);
        self.before_store.set_silent(false);
        self.broker.set(Line::Through);
    }

    /// Kills a role, seldom the broker or the store, which take longest to come back.
    async fn kill(&mut self) -> anyhow::Result<&'static str> {
        let victim = match self.random.random_range(0..100) {
            0..5 => "Kafka",
            5..11 => "MinIO",
            n => ROLES[n % ROLES.len()],
        };
        match victim {
            "Kafka" => self.kafka.tell("kill", None)?,
            "MinIO" => self.store.tell("kill")?,
            role => self.roles.get_mut(role).context("no such role")?.kill()?,
        }
        *self.told.kills.entry(victim.to_owned()).or_default() += 1;
        Ok(victim)
    }

    async fn revive(&mut self, victim: &'static str) -> anyhow::Result<()> {
        match victim {
            "Kafka" => self.kafka.start(),
            "MinIO" => self.store.tell("start"),
            role => self.come_back(role).await,
        }
    }

    async fn everything_holds(&mut self, seen: &Seen) -> anyhow::Result<()> {
        let query = self.roles["query-1"].url.clone();
        let patience = 3 * wait::PATIENCE;
        for proxy in ["proxy-1", "proxy-2"] {
            wait::within(patience, "everything shipped", || async {
                let url = &self.roles[proxy].url;
                let left = metrics::sum(url, "custody_ship_unshipped_entries").await.ok()?;
                (left < 1.0).then_some(())
            })
            .await?;
        }
        wait::within(patience, "an ending of every call", || async {
            let open = "SELECT count(*) FROM calls WHERE status = 'in_flight'";
            (question::number(&query, open).await.ok()? == 0).then_some(())
        })
        .await?;
        // Every question is recorded: while somebody asks, there is always something to store.
        wait::within(patience, "everything in the lake", || async {
            let mut waiting = 0.0;
            for worker in ["ingest-1", "ingest-2"] {
                let url = &self.roles[worker].url;
                waiting += metrics::sum(url, "custody_ingest_lag_entries").await.unwrap_or(0.0);
            }
            (waiting < 1.0).then_some(())
        })
        .await?;
        check::answered_calls_are_there_once(&query, &[seen], patience).await?;
        check::refused_calls_did_not_run(&query, seen).await?;
        check::whatever_ran_was_opened(&query, &self.upstream).await?;
        self.told.count(&query, seen).await?;
        self.told.faults = self.before_store.faults();
        self.told.verified = self.verified(patience).await?;
        ensure!(seen.answered.len() > 20, "the storm was no storm: {:?}", self.told);
        Ok(())
    }
    /// The records in the lake, which somebody outside finds valid: what was stored last may come
    /// into the tables a moment before its bodies.
    async fn verified(&self, patience: Duration) -> anyhow::Result<u64> {
        let look = || check::lake_is_valid(self.cluster.verify()?);
        match wait::within(patience, "a valid lake", || async { look().ok() }).await {
            Ok(records) => Ok(records),
            Err(_) => look(),
        }
    }
}
