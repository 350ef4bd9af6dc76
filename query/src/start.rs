//! The start of the engine, beside the listener: what it answers from is opened in the background,
//! again and again until that works, and until then everybody is told why not.

use std::sync::Arc;
use std::time::Duration;

use custody_journal::Journal;
use custody_lake::{Lake, LakeError, LakeOptions};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::engine::{EngineOptions, OpenError};
use crate::sources::Sources;

/// How long to wait before the next try.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The lake that questions are about.
#[derive(Clone, Debug)]
pub enum Source {
    /// One that is open.
    Lake(Lake),
    /// One that nobody has made yet; it is opened as soon as it is there.
    Awaited {
        /// Where it will be.
        url: String,
        /// How it is opened.
        options: LakeOptions,
    },
}

impl From<Lake> for Source {
    fn from(lake: Lake) -> Self {
        Self::Lake(lake)
    }
}

impl Source {
    /// A lake for those who only ask: they make no table and write nothing, so that credentials
    /// which may read are enough. Where there is none yet, whoever ingests will make it.
    ///
    /// # Errors
    /// [`LakeError`], but not that it is absent.
    pub async fn for_reading(url: &str, options: LakeOptions) -> Result<Self, LakeError> {
        let options = LakeOptions { read_only: true, ..options };
        match Lake::open(url, &options).await {
            Ok(lake) => Ok(Self::Lake(lake)),
            Err(LakeError::Absent { .. }) => Ok(Self::Awaited { url: url.to_owned(), options }),
            Err(error) => Err(error),
        }
    }

    async fn lake(&self) -> Result<Lake, LakeError> {
        match self {
            Self::Lake(lake) => Ok(lake.clone()),
            Self::Awaited { url, options } => Lake::open(url, options).await,
        }
    }
}

/// Where the sources will be when they are open.
pub(crate) struct Start {
    opened: watch::Receiver<Option<Arc<Sources>>>,
    stage: Arc<Mutex<String>>,
}

impl Start {
    /// Begins to open the sources, and keeps them fresh from then on until `stop`.
    pub(crate) fn begin(
        source: Source,
        journal: Arc<dyn Journal>,
        options: EngineOptions,
        stop: CancellationToken,
    ) -> Self {
        let (open, opened) = watch::channel(None);
        let stage = Arc::new(Mutex::new("what the lake holds is being summed up".to_owned()));
        let told = Arc::clone(&stage);
        let run = stop.clone().run_until_cancelled_owned(async move {
            let sources = loop {
                match from(&source, &journal, &options).await {
                    Ok(sources) => break Arc::new(sources),
                    Err(error) => {
                        let problem = error.to_string();
                        if *told.lock() != problem {
                            tracing::warn!(%problem, "questions cannot be answered yet");
                        }
                        *told.lock() = problem;
                    }
                }
                tokio::time::sleep(AGAIN_AFTER).await;
            };
            open.send_replace(Some(Arc::clone(&sources)));
            sources.keep(stop).await;
        });
        tokio::spawn(run);
        Self { opened, stage }
    }

    /// The sources, as soon as they are open but no later than `within`; then what is awaited.
    ///
    /// # Errors
    /// What is being done, or what is in the way.
    pub(crate) async fn within(&self, within: Duration) -> Result<Arc<Sources>, String> {
        let mut opened = self.opened.clone();
        let wait = tokio::time::timeout(within, opened.wait_for(Option::is_some)).await;
        let sources = wait.ok().and_then(Result::ok).and_then(|sources| sources.clone());
        sources.ok_or_else(|| self.stage.lock().clone())
    }

    /// The sources, if they are open.
    ///
    /// # Errors
    /// What is being done, or what is in the way.
    pub(crate) fn now(&self) -> Result<Arc<Sources>, String> {
        self.opened.borrow().clone().ok_or_else(|| self.stage.lock().clone())
    }
}

async fn from(
    source: &Source,
    journal: &Arc<dyn Journal>,
    options: &EngineOptions,
) -> Result<Sources, OpenError> {
    Sources::open(source.lake().await?, Arc::clone(journal), options.clone()).await
}

#[cfg(test)]
mod tests;
