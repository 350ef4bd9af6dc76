//! Sealed lakes that nobody has recorded: as many events as are asked for, in the streams of any
//! writer, with any record left out of the tables, under keys that whoever tests holds.
//!
//! They are what evidence is measured on, and what a forger with the right keys could make. Every
//! patient in them is synthetic.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use custody_lake::batch::Rows;
use custody_lake::columns::EVENTS;
use custody_lake::evidence::{Judged, Order, Trust, check, export};
use custody_lake::files::FileSet;
use custody_lake::rows::{Arrival, Standing};
use custody_lake::tiles::{DeploymentLog, ROOT_PATH, keyring_path, stream_folder};
use custody_lake::{Lake, LakeOptions, TxnStep, file_app_id, tags};
use custody_schemas::event::{Data, Draft, Principal, Subject, What, Who};
use custody_schemas::id::{Bytes, CallId, Hash, Micros, StreamId};
use custody_schemas::kind::Kind;
use custody_schemas::record::{Place, decode, hash};
use custody_schemas::seal::checkpoint::{Checkpoint, origin};
use custody_schemas::seal::key::Signer;
use custody_schemas::seal::keyring::{Keyring, LOG, WriterKey};
use custody_schemas::seal::log::keyring_entry;
use custody_schemas::seal::tile::Tiled;
use custody_schemas::words::Direction;

/// 20 October 2024, before all events.
pub const BEGIN: u64 = 20_016 * 86_400_000_000;
/// Events in a data file, and under a checkpoint.
const PIECE: usize = 20_000;

/// The keys of a deployment.
struct Keys {
    root: Signer,
    log: Signer,
    writers: BTreeMap<String, Signer>,
}

/// A lake under construction.
pub struct Sealed {
    /// Its tables and seals.
    pub lake: Lake,
    deployment: String,
    keys: Keys,
    log: DeploymentLog,
    streams: BTreeMap<StreamId, Tiled>,
    stored: u64,
}

/// An event to come: what, and how long after [`BEGIN`], in microseconds.
pub type Coming = (Draft, u64);

/// A key that grows from its own name: no secret at all.
fn key(name: &str) -> anyhow::Result<Signer> {
    Ok(Signer::from_seed(name, &hash(name.as_bytes()).0)?.0)
}

/// `count` endings of calls, one in `phi` of them about a synthetic patient, a millisecond apart.
pub fn calls(count: u64, phi: u64) -> impl Iterator<Item = Coming> {
    (0..count).map(move |n| (call(n, n % phi == 0), n * 1_000))
}

/// The ending of call `n`.
#[must_use]
pub fn call(n: u64, phi: bool) -> Draft {
    let mut draft = Draft::new(Kind::CallEnded);
    let digest = hash(&n.to_be_bytes()).to_string();
    let id = format!(
        "{}-{}-7{}-8{}-{}",
        &digest[..8],
        &digest[8..12],
        &digest[13..16],
        &digest[17..20],
        &digest[20..32]
    );
    draft.call = id.parse::<CallId>().ok();
    let user = Principal { subject: format!("synthetic-user-{}", n % 50), ..Principal::default() };
    draft.who = Some(Who { user: Some(user), ..Who::default() }.into());
    let (server, tool) = (Some("ehr".to_owned()), Some("read_chart".to_owned()));
    draft.what = Some(What { server, tool, ..What::default() }.into());
    if phi {
        let subject = Subject {
            system: "fhir:Patient".to_owned(),
            id: format!("synthetic-{}", n % 1_000),
            direction: Direction::Received,
            ..Subject::default()
        };
        draft.data =
            Data { labels: vec!["phi".to_owned()], subjects: vec![subject], ..Data::default() };
    }
    draft
}

impl Sealed {
    /// An empty lake with a keyring of these writers.
    ///
    /// # Errors
    /// When the folder cannot be used.
    pub async fn new(folder: &Path, deployment: &str, writers: &[&str]) -> anyhow::Result<Self> {
        let url = folder.to_str().context("a path that is text")?;
        let lake = Lake::open(url, &LakeOptions::new(deployment)).await?;
        let of = |name: &&str| Ok((String::from(*name), key(&format!("{deployment}/{name}"))?));
        let keys = Keys {
            root: key(&format!("{deployment}/root"))?,
            log: key(deployment)?,
            writers: writers.iter().map(of).collect::<anyhow::Result<_>>()?,
        };
        let log = DeploymentLog::open(lake.seals().clone(), deployment).await?;
        let deployment = deployment.to_owned();
        let mut new = Self { lake, deployment, keys, log, streams: BTreeMap::new(), stored: 0 };
        new.lake.seals().put(ROOT_PATH, format!("{}\n", new.keys.root.vkey())).await?;
        new.enrol(1, None).await?;
        Ok(new)
    }

    /// The root's public key.
    #[must_use]
    pub fn root(&self) -> &str {
        self.keys.root.vkey()
    }

    /// Puts an edition of the keyring into force, in which all writers' keys end at this moment.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn enrol(&mut self, edition: u64, until: Option<u64>) -> anyhow::Result<()> {
        let listed = |name: &str, signer: &Signer, until: Option<u64>| WriterKey {
            name: name.to_owned(),
            vkey: signer.vkey().to_owned(),
            from: Micros::new(BEGIN),
            until: until.map(|after| Micros::new(BEGIN + after)),
            retired: false,
        };
        let ring = Keyring {
            deployment: self.deployment.clone(),
            edition,
            writers: self.keys.writers.iter().map(|(name, key)| listed(name, key, until)).collect(),
            log: vec![listed(LOG, &self.keys.log, None)],
        };
        let note = ring.sign(&self.keys.root)?;
        self.lake.seals().put(&keyring_path(edition), note.clone()).await?;
        self.log.append(&[keyring_entry(&ring, &note)], &self.keys.log).await?;
        Ok(())
    }

    /// Adds events to a run of a writer, and seals them; those that `hidden` names do not come into
    /// the tables.
    ///
    /// # Errors
    /// When something cannot be written.
    pub async fn record(
        &mut self,
        stream: &StreamId,
        events: impl Iterator<Item = Coming>,
        hidden: &[u64],
    ) -> anyhow::Result<()> {
        let mut tree = self.streams.remove(stream).unwrap_or_default();
        let (mut events, mut full) = (events.peekable(), Vec::new());
        while events.peek().is_some() {
            let (mut rows, first, begun) = (Rows::events(), tree.size(), self.stored);
            for (draft, after) in events.by_ref().take(PIECE) {
                let seq = tree.size();
                let salt: [u8; 16] = hash(&seq.to_be_bytes()).0[..16].try_into()?;
                let at = Micros::new(BEGIN + after);
                let place = Place { stream: stream.clone(), seq, at, salt: Bytes(salt) };
                let record = draft.seal(place)?;
                tree.push(record.leaf.as_bytes(), &mut full);
                if !hidden.contains(&seq) {
                    let (journaled_at, offset) = (at, self.stored);
                    let arrival = Arrival {
                        partition: stream.writer(),
                        offset,
                        journaled_at,
                        stored_at: None,
                    };
                    rows.record(&record.bytes, &decode(&record.bytes), Standing::Event, &arrival);
                }
                self.stored += 1;
            }
            self.store(stream, rows, (first, tree.size()), begun).await?;
        }
        self.lake.seals().grow(&stream_folder(stream), full, &tree).await?;
        let note = self.checkpoint(stream, tree.size(), tree.root())?;
        self.log.append(std::slice::from_ref(&note), &self.keys.log).await?;
        self.lake.seals().put(&format!("{}checkpoint", stream_folder(stream)), note).await?;
        self.streams.insert(stream.clone(), tree);
        Ok(())
    }

    /// The signed note of a checkpoint, whether or not it is true.
    ///
    /// # Errors
    /// When the writer has no key.
    pub fn checkpoint(&self, stream: &StreamId, size: u64, root: Hash) -> anyhow::Result<String> {
        let origin = origin(&self.deployment, stream);
        let signer = self.keys.writers.get(stream.writer()).context("a writer with a key")?;
        Ok(Checkpoint { origin, size, root }.sign(signer)?)
    }

    /// Enters a note into the log as it is.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn enter(&mut self, note: String) -> anyhow::Result<()> {
        self.log.append(&[note], &self.keys.log).await?;
        Ok(())
    }

    async fn store(
        &mut self,
        stream: &StreamId,
        mut rows: Rows,
        span: (u64, u64),
        start: u64,
    ) -> anyhow::Result<()> {
        let app_id = file_app_id("custody.events", stream.writer());
        let mut set = FileSet::new(EVENTS);
        set.append(&rows.finish()?)?;
        let spans = [span];
        let encoded = set.finish("t", &tags::write(&app_id, [(stream, &spans[..])]))?;
        let table = self.lake.events();
        let files = table.store(&encoded).await?;
        let before = table.snapshot().await?.txn(&app_id).await?;
        let end = start + (span.1 - span.0);
        table.commit(&files, &[TxnStep { app_id, start: before, end }]).await?;
        Ok(())
    }

    /// A package of `[from, to)`, both after [`BEGIN`], and what its maker judges of it.
    ///
    /// # Errors
    /// When none can be made.
    pub async fn package(
        &self,
        (from, to): (u64, u64),
        change: impl FnOnce(&mut Order),
    ) -> anyhow::Result<(std::fs::File, Judged)> {
        let scratch = std::env::temp_dir();
        let (from, to) = (Micros::new(BEGIN + from), Micros::new(BEGIN + to));
        let asked = serde_json::Map::new();
        let mut order =
            Order { from, to, made_at: to, asked, filter: None, challenge: None, scratch };
        change(&mut order);
        Ok(export(&self.lake, &order).await?)
    }
}

/// What an auditor judges who keeps this root.
///
/// # Errors
/// When it is no package.
pub fn judge(package: &mut std::fs::File, root: &str) -> anyhow::Result<Judged> {
    let trust = Trust { root: Some(root.to_owned()), ..Trust::default() };
    Ok(check(package, &trust, &|_, _| {})?)
}
