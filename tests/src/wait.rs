//! Waiting for a state instead of for a time.

use std::time::{Duration, Instant};

/// How long a state may take to come on a slow machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks again and again until there is an answer; an error, with what was waited for, when there
/// is none in a minute.
///
/// # Errors
/// When the state does not come.
pub async fn until<T, F>(what: &str, ask: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = Option<T>>,
{
    within(PATIENCE, what, ask).await
}

/// As [`until`], for as long as `patience`.
///
/// # Errors
/// When the state does not come.
pub async fn within<T, F>(
    patience: Duration,
    what: &str,
    mut ask: impl FnMut() -> F,
) -> anyhow::Result<T>
where
    F: Future<Output = Option<T>>,
{
    let started = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return Ok(answer);
        }
        if started.elapsed() > patience {
            anyhow::bail!("waited {} s in vain for: {what}", patience.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
