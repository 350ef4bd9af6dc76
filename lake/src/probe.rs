//! Whether a store can keep two writers apart: it must refuse to create what is already there.
//!
//! The fenced commit rests on that alone. A store that ignores the condition would let two ingest
//! workers write the same version of the log, and one of the two would vanish unseen. So before a
//! lake is used, an object is created twice, its content looked at, and another one is created by
//! several at once. What the probe writes it deletes again.

use std::time::Duration;

use futures::future::join_all;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions};

/// How long the whole probe may take.
const TIMEOUT: Duration = Duration::from_secs(45);
/// How many create the same object at once.
const RACERS: u8 = 4;

/// Why a store does not do.
#[derive(Debug)]
pub(crate) enum Unfit {
    /// It created what was already there.
    Twice,
    /// It knows no creation on condition.
    Never(String),
    /// It could not be asked.
    Unanswered(Error),
}

impl From<Error> for Unfit {
    fn from(error: Error) -> Self {
        let generic = matches!(error, Error::Generic { .. });
        if matches!(error, Error::NotImplemented { .. }) {
            Self::Never(error.to_string())
        } else if generic && error.to_string().contains("<Code>NotImplemented</Code>") {
            // What object stores answer to a header that they do not implement.
            Self::Never("NotImplemented".to_owned())
        } else {
            Self::Unanswered(error)
        }
    }
}

/// Asks the store, in the folder of the lake.
///
/// # Errors
/// [`Unfit`].
pub(crate) async fn conditional_put(store: &dyn ObjectStore, folder: &Path) -> Result<(), Unfit> {
    let name = |what: &str| {
        let id = uuid::Uuid::new_v4().simple();
        folder.clone().join("_custody_probe").join(format!("{what}-{id}"))
    };
    let (twice, race) = (name("twice"), name("race"));
    let asked = async {
        one_after_another(store, &twice).await?;
        at_once(store, &race).await
    };
    let verdict = tokio::time::timeout(TIMEOUT, asked).await.unwrap_or_else(|_| {
        let source = format!("no answer within {} s", TIMEOUT.as_secs()).into();
        Err(Unfit::Unanswered(Error::Generic { store: "probe", source }))
    });
    if verdict.is_ok() {
        for path in [twice, race] {
            if let Err(error) = store.delete(&path).await {
                tracing::debug!(%error, %path, "the probe's object stays");
            }
        }
    }
    verdict
}

async fn one_after_another(store: &dyn ObjectStore, path: &Path) -> Result<(), Unfit> {
    match create(store, path, 1).await {
        // An answer that was lost on the way, and the next attempt found the object.
        Ok(()) | Err(Error::AlreadyExists { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    match create(store, path, 2).await {
        Ok(()) => return Err(Unfit::Twice),
        Err(Error::AlreadyExists { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let content = store.get(path).await?.bytes().await?;
    if content.as_ref() == [1] { Ok(()) } else { Err(Unfit::Twice) }
}

/// At most one of them may be told that it was the one.
async fn at_once(store: &dyn ObjectStore, path: &Path) -> Result<(), Unfit> {
    let mut made = 0;
    for result in join_all((0..RACERS).map(|racer| create(store, path, racer))).await {
        match result {
            Ok(()) => made += 1,
            Err(Error::AlreadyExists { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if made > 1 { Err(Unfit::Twice) } else { Ok(()) }
}

async fn create(store: &dyn ObjectStore, path: &Path, content: u8) -> Result<(), Error> {
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    store.put_opts(path, vec![content].into(), options).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::TryStreamExt;
    use object_store::memory::InMemory;

    #[tokio::test]
    async fn a_store_that_refuses_to_create_twice_does_and_is_left_as_it_was() {
        let store = InMemory::new();
        conditional_put(&store, &Path::from("lake")).await.unwrap();
        let left: Vec<_> = store.list(None).try_collect().await.unwrap();
        assert!(left.is_empty(), "{left:?}");
    }
}
