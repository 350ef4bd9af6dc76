//! The deployment log: an append is a file that is created once, everything else follows from it.
//!
//! `commits/{size}` holds what was appended at that size. Whoever creates it has appended; whoever
//! finds it there takes it over and appends behind it. Tiles and the signed head are written from
//! the commits afterwards, by anybody, always with the same content, so a process that is killed
//! in between leaves nothing to mend. Commits are never deleted: a worker that slept for long must
//! not be able to create an old one again.

use custody_schemas::seal::checkpoint::Checkpoint;
use custody_schemas::seal::key::{KeyError, Signer};
use custody_schemas::seal::tile::{TileError, TileFile, Tiled, entries};

use super::{LOG_FOLDER, SealError, Seals};

/// How many commits of others an append takes over before it gives up for now.
const BEHIND: u32 = 10_000;

/// Why the log cannot be read or appended to.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Its files cannot be read or written.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// Its head cannot be read or signed.
    #[error("the deployment log's head: {0}")]
    Key(#[from] KeyError),
    /// An entry does not fit into a bundle.
    #[error(
        "an entry of {0} bytes cannot stand in the deployment log, whose entries have at most 65,535"
    )]
    TooLong(usize),
    /// Others append faster than this process can follow.
    #[error("others append to the deployment log faster than this process can follow; try again")]
    Behind,
}

/// The log of a deployment, as far as this process has read it.
#[derive(Debug)]
pub struct DeploymentLog {
    seals: Seals,
    origin: String,
    tree: Tiled,
    /// The head that was written last, with its size.
    head: Option<(u64, String)>,
}

impl DeploymentLog {
    /// Reads the log of the deployment called `origin`; without a head it is empty.
    ///
    /// # Errors
    /// When its files do not fit each other.
    pub async fn open(seals: Seals, origin: &str) -> Result<Self, LogError> {
        let head = match seals.text(&format!("{LOG_FOLDER}checkpoint")).await? {
            Some(note) => Some((parse(&note)?.size, note)),
            None => None,
        };
        let size = head.as_ref().map_or(0, |(size, _)| *size);
        let tree = seals.tree(LOG_FOLDER, size).await?;
        Ok(Self { seals, origin: origin.to_owned(), tree, head })
    }

    /// The signed head behind everything that anybody has appended by now; none while the log is
    /// empty.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn head(
        &mut self,
        signer: &Signer,
    ) -> Result<Option<(Checkpoint, String)>, LogError> {
        self.mend(signer).await?;
        let Some((_, note)) = self.head.as_ref().filter(|(size, _)| *size == self.size()) else {
            return Ok(None);
        };
        Ok(Some((parse(note)?, note.clone())))
    }

    /// Number of entries.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.tree.size()
    }

    /// Appends entries behind whatever others have appended, and signs the head.
    ///
    /// # Errors
    /// [`LogError::TooLong`] before anything is appended. After any other the entries may be
    /// appended or not, and appending them again is allowed.
    pub async fn append(&mut self, new: &[String], signer: &Signer) -> Result<u64, LogError> {
        let mut full = Vec::new();
        let bundle = bundle(new)?;
        self.catch_up(&mut full).await?;
        for _ in 0..BEHIND {
            if self.seals.create(&self.commit(), bundle.clone()).await? {
                self.take(&bundle, &mut full)?;
                self.publish(full, signer).await?;
                return Ok(self.size());
            }
            self.catch_up(&mut full).await?;
        }
        Err(LogError::Behind)
    }

    /// Writes what others have appended and not written, and signs the head.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn mend(&mut self, signer: &Signer) -> Result<(), LogError> {
        let mut full = Vec::new();
        if self.catch_up(&mut full).await? { self.publish(full, signer).await } else { Ok(()) }
    }

    fn commit(&self) -> String {
        format!("{LOG_FOLDER}commits/{:020}", self.size())
    }

    /// Takes over what others have appended; whether there was anything.
    async fn catch_up(&mut self, full: &mut Vec<TileFile>) -> Result<bool, LogError> {
        let mut any = false;
        for _ in 0..BEHIND {
            let Some(bytes) = self.seals.get(&self.commit()).await? else { return Ok(any) };
            self.take(&bytes, full)?;
            any = true;
        }
        Err(LogError::Behind)
    }

    fn take(&mut self, bytes: &[u8], full: &mut Vec<TileFile>) -> Result<(), LogError> {
        let path = self.commit();
        for entry in commit_entries(&path, bytes).map_err(|source| tile("", source))? {
            self.tree.push(&entry, full);
        }
        Ok(())
    }

    /// Writes tiles, then the head: whoever reads a head finds its tiles. A head that others have
    /// made older meanwhile is written once more.
    async fn publish(&mut self, mut full: Vec<TileFile>, signer: &Signer) -> Result<(), LogError> {
        for _ in 0..BEHIND {
            self.seals.grow(LOG_FOLDER, std::mem::take(&mut full), &self.tree).await?;
            let (origin, size) = (self.origin.clone(), self.size());
            let head = Checkpoint { origin, size, root: self.tree.root() };
            let note = head.sign(signer)?;
            self.seals.put(&format!("{LOG_FOLDER}checkpoint"), note.clone()).await?;
            self.head = Some((head.size, note));
            if !self.catch_up(&mut full).await? {
                return Ok(());
            }
        }
        Err(LogError::Behind)
    }
}

fn tile(place: &str, source: TileError) -> LogError {
    LogError::Seal(SealError::Tile { place: place.to_owned(), source })
}

/// The checkpoint that a note says, its signature unseen.
fn parse(note: &str) -> Result<Checkpoint, KeyError> {
    let text = note.split("\n\n").next().unwrap_or_default();
    Checkpoint::parse(&format!("{text}\n"))
}

/// Entries as a commit holds them: as a bundle does, however many they are.
fn bundle(new: &[String]) -> Result<Vec<u8>, LogError> {
    let mut bytes = Vec::new();
    for entry in new {
        let length = u16::try_from(entry.len()).map_err(|_| LogError::TooLong(entry.len()))?;
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(entry.as_bytes());
    }
    Ok(bytes)
}

fn commit_entries(path: &str, bytes: &[u8]) -> Result<Vec<Vec<u8>>, TileError> {
    let mut count = 0;
    let mut rest = bytes;
    while let Some((length, behind)) = rest.split_first_chunk::<2>() {
        rest = behind.get(usize::from(u16::from_be_bytes(*length))..).unwrap_or_default();
        count += 1;
    }
    entries(path, bytes, count)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use custody_schemas::seal::tile::bundles;
    use object_store::memory::InMemory;

    use super::*;

    fn signer() -> Signer {
        Signer::from_seed("a.example", &[5; 32]).unwrap().0
    }

    async fn all(seals: &Seals) -> Vec<String> {
        let note = seals.text("log/checkpoint").await.unwrap().unwrap();
        let head = Checkpoint::verify(&note, &[signer().vkey()]).unwrap();
        let mut found = Vec::new();
        let (mut tree, mut full) = (Tiled::default(), Vec::new());
        for (path, count) in bundles(head.size) {
            let bytes = seals.get(&format!("log/{path}")).await.unwrap().unwrap();
            for entry in entries(&path, &bytes, count).unwrap() {
                tree.push(&entry, &mut full);
                found.push(String::from_utf8(entry).unwrap());
            }
        }
        assert_eq!(tree.root(), head.root);
        found
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_several_append_at_once_is_there_once_and_under_a_signed_head() {
        let seals = Seals::new(Arc::new(InMemory::new()));
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let seals = seals.clone();
                tokio::spawn(async move {
                    let mut log = DeploymentLog::open(seals, "a.example").await.unwrap();
                    for i in 0..100 {
                        log.append(&[format!("{worker}-{i}\n")], &signer()).await.unwrap();
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.await.unwrap();
        }
        let mut found = all(&seals).await;
        assert_eq!(found.len(), 400);
        found.sort();
        found.dedup();
        assert_eq!(found.len(), 400);
    }

    #[tokio::test]
    async fn an_append_that_was_cut_off_after_its_commit_is_finished_by_the_next() {
        let seals = Seals::new(Arc::new(InMemory::new()));
        let mut log = DeploymentLog::open(seals.clone(), "a.example").await.unwrap();
        log.append(&["one\n".to_owned()], &signer()).await.unwrap();
        seals.create(&log.commit(), bundle(&["two\n".to_owned()]).unwrap()).await.unwrap();
        let mut next = DeploymentLog::open(seals.clone(), "a.example").await.unwrap();
        assert_eq!(all(&seals).await, ["one\n"]);
        next.mend(&signer()).await.unwrap();
        assert_eq!(all(&seals).await, ["one\n", "two\n"]);
        log.append(&["three\n".to_owned()], &signer()).await.unwrap();
        assert_eq!(all(&seals).await, ["one\n", "two\n", "three\n"]);
    }

    #[tokio::test]
    async fn an_entry_that_is_too_long_is_refused_and_nothing_is_appended() {
        let seals = Seals::new(Arc::new(InMemory::new()));
        let mut log = DeploymentLog::open(seals.clone(), "a.example").await.unwrap();
        let long = ["one\n".to_owned(), "x".repeat(65_536)];
        let error = log.append(&long, &signer()).await.unwrap_err();
        assert!(matches!(error, LogError::TooLong(65_536)), "{error}");
        assert_eq!(seals.list("log").await.unwrap(), Vec::<String>::new());
        log.append(&["one\n".to_owned(), "x".repeat(65_535)], &signer()).await.unwrap();
        assert_eq!(all(&seals).await[1].len(), 65_535);
    }
}
