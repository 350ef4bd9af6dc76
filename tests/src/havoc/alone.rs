//! `custody up` on local disk, killed again and again, each life on what the one before has left.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::Told;
use crate::product::{Setup, executable};
use crate::storm::{Seen, Storm};
use crate::upstream::{Behaviour, Upstream};
use crate::{check, question, wait};

/// Kills it `kills` times under load, then checks everything.
///
/// # Errors
/// With the first thing that does not hold; the data are kept then, and named.
pub async fn run(seed: u64, kills: u32) -> anyhow::Result<Told> {
    let begun = Instant::now();
    let folder = tempfile::tempdir()?;
    match rage(seed, kills, folder.path()).await {
        Ok(told) => Ok(Told { took: begun.elapsed(), ..told }),
        Err(error) => {
            let kept = folder.keep();
            Err(error).with_context(|| format!("seed {seed}; data in {}", kept.display()))
        }
    }
}

async fn rage(seed: u64, kills: u32, folder: &std::path::Path) -> anyhow::Result<Told> {
    let mut random = StdRng::seed_from_u64(seed);
    let upstream = Upstream::start(Behaviour::Echo).await?;
    let setup = Setup::default()
        .server("s", &upstream.url(), true)
        .lake_lines("flush_seconds = 1")
        .query_lines("deadline_ms = 300000");
    let mut seen = Seen::default();
    for life in 0..kills {
        let mut custody = setup.start(folder)?;
        let storm = Storm::start(&format!("tool-{life}"), &[custody.server("s")], 8, NO_PAUSE);
        let moment = Duration::from_millis(random.random_range(50..2_500));
        tokio::time::sleep(moment).await;
        custody.kill()?;
        seen.add(storm.end().await?);
    }
    let mut custody = setup.start(folder)?;
    let query = &custody.query.clone();
    wait::within(3 * wait::PATIENCE, "an ending of every call", || async {
        let open = "SELECT count(*) FROM calls WHERE status = 'in_flight'";
        (question::number(query, open).await.ok()? == 0).then_some(())
    })
    .await?;
    check::answered_calls_are_there_once(query, &[&seen], wait::PATIENCE).await?;
    check::refused_calls_did_not_run(query, &seen).await?;
    check::whatever_ran_was_opened(query, &upstream).await?;
    let mut told = Told::default();
    told.kills.insert("custody up".to_owned(), kills);
    told.count(query, &seen).await?;
    ensure!(custody.stop()?, "it did not stop in order");
    let mut verify = Command::new(executable()?);
    verify.args(["verify", "--json", "--bodies", "--lake"]).arg(folder.join("data/lake"));
    told.verified = check::lake_is_valid(verify)?;
    ensure!(seen.answered.len() > 20, "the storm was no storm: {told:?}");
    Ok(told)
}

/// Clients call as soon as they are answered; those of a dead process see that at once.
const NO_PAUSE: Duration = Duration::from_millis(1);
