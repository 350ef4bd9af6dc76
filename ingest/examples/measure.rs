//! How fast a file journal is carried into a lake, and how many bytes an event takes there.
//!
//! `cargo run --release -p custody-ingest --example measure [CALLS] [FOLDER]`. The events are those
//! of FHIR reads through the proxy: an opening and an ending each, twenty people, six agents, eight
//! tools, 2,000 patients, every fourth answer a search with several of them, and a signed
//! checkpoint with the leaves of every 2,000 events. Only ingest is timed; the journal is written
//! before; a FOLDER that is named is kept. `events/s` counts events alone, bytes count everything in the table.

#![expect(clippy::print_stdout, reason = "a command that reports on its standard output")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use custody_ingest::{Assigned, Ingest, Settings};
use custody_journal::file::FileAppend;
use custody_journal::{Append, EntryKind, Journal, NewEntry};
use custody_lake::{Lake, LakeOptions};
use custody_schemas::event::{
    Agent, Bodies, BodyRef, ClientClaimed, Data, Decision, Draft, Outcome, Principal, Recipient,
    Source, Subject, What, Who,
};
use custody_schemas::id::{Bytes, CallId, StreamId, Uint};
use custody_schemas::kind::Kind;
use custody_schemas::record::Place;
use custody_schemas::seal::checkpoint::{Checkpoint, Message, origin};
use custody_schemas::seal::key::Signer;
use custody_schemas::seal::{Leaf, Tree};
use custody_schemas::words::{
    Activity, Assurance, Direction, Effect, PurposeSource, Relation, Status, SubjectStatus,
};
use parquet::file::reader::{FileReader, SerializedFileReader};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_util::sync::CancellationToken;

type Failure = Box<dyn std::error::Error>;

/// A writer of one stream, as far as ingest can tell.
struct World {
    random: StdRng,
    stream: StreamId,
    at: u64,
    leaves: Vec<Leaf>,
    tree: Tree,
    signer: Signer,
    who: Vec<Arc<Who>>,
    what: Vec<Arc<What>>,
    decision: Arc<Decision>,
}

impl World {
    fn new() -> Result<Self, Failure> {
        let mut random = StdRng::seed_from_u64(42);
        let who = (0..120).map(|i| Arc::new(who(i, &mut random))).collect();
        let what = (0..8).map(|i| Arc::new(what(i, &mut random))).collect();
        let decision = Decision {
            effect: Effect::Allow,
            policies: vec!["clinical-read".into()],
            policy_version: Some("2026-11-01.3".into()),
            ..Decision::default()
        };
        Ok(Self {
            random,
            stream: "edge-1/0190c8a0-7b1e-7000-8000-000000000001".parse()?,
            at: u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?,
            leaves: Vec::new(),
            tree: Tree::new(),
            signer: Signer::from_seed("audit.st-elsewhere.example/edge-1", &[3; 32])?.0,
            who,
            what,
            decision: Arc::new(decision),
        })
    }

    fn hash<const N: usize>(&mut self) -> Bytes<N> {
        let mut bytes = [0; N];
        self.random.fill(&mut bytes[..]);
        Bytes(bytes)
    }

    fn body(&mut self, bytes: u64) -> BodyRef {
        let (body, commitment) = (self.hash(), self.hash());
        BodyRef { body, bytes: Uint::new(bytes), chunks: Uint::new(1), commitment }
    }

    /// An opening and an ending, as entries.
    fn call(&mut self, entries: &mut Vec<NewEntry>) -> Result<(), Failure> {
        let id = uuid::Builder::from_unix_timestamp_millis(self.at / 1000, &self.hash::<10>().0);
        let call = CallId::from_uuid(id.into_uuid());
        let (who, what) = (self.random.random_range(0..120), self.random.random_range(0..8));
        let mut what = (*self.what[what]).clone();
        what.rpc_id = Some(self.random.random_range(1..400).to_string());
        let mut draft = Draft::new(Kind::CallRequested);
        draft.call = Some(call);
        draft.who = Some(Arc::clone(&self.who[who]));
        draft.what = Some(Arc::new(what));
        draft.decision = Some(Arc::clone(&self.decision));
        let length = self.random.random_range(180..420);
        draft.bodies = Bodies { request: Some(self.body(length)), ..Bodies::default() };
        draft.data.labels = vec!["phi".into()];
        let mut ending = draft.clone();
        self.append(draft, entries)?;
        ending.kind = Kind::CallEnded;
        ending.outcome = Some(Outcome {
            duration_us: Some(Uint::new(self.random.random_range(4_000..90_000))),
            http_status: Some(200),
            status: Status::Ok,
            ..Outcome::default()
        });
        let length = self.random.random_range(900..9_000);
        ending.bodies.response = Some(self.body(length));
        ending.data = self.data();
        self.append(ending, entries)
    }

    fn data(&mut self) -> Data {
        let patients = if self.random.random_range(0..4) == 0 { 5 } else { 1 };
        let subjects: Vec<_> = (0..patients).map(|_| self.subject()).collect();
        Data {
            detector: Some("fhir@1".into()),
            identifiers: vec!["names".into(), "dates".into()],
            labels: vec!["phi".into()],
            subject_count: Some(Uint::new(subjects.len() as u64)),
            subject_status: Some(SubjectStatus::Recognised),
            subjects,
            ..Data::default()
        }
    }

    fn subject(&mut self) -> Subject {
        Subject {
            categories: vec!["Observation".into()],
            direction: Direction::Received,
            id: format!("pat-{:05}", self.random.random_range(0..2_000)),
            records: Some(Uint::new(self.random.random_range(1..9))),
            system: "fhir:Patient".into(),
            ..Subject::default()
        }
    }

    fn append(&mut self, draft: Draft, entries: &mut Vec<NewEntry>) -> Result<(), Failure> {
        self.at += self.random.random_range(20..700);
        let (seq, salt) = (self.tree.size(), self.hash());
        let place = Place { stream: self.stream.clone(), seq, at: Uint::new(self.at), salt };
        let record = draft.seal(place)?;
        self.tree.push(&record.leaf);
        self.leaves.push(record.leaf);
        entries.push(entry(EntryKind::Event, record.bytes));
        if self.leaves.len() == 2_000 {
            let origin = origin("audit.st-elsewhere.example", &self.stream);
            let note = Checkpoint::of(origin, &self.tree).sign(&self.signer)?;
            let leaves = std::mem::take(&mut self.leaves);
            let message = Message { note, first: self.tree.size() - 2_000, leaves };
            entries.push(entry(EntryKind::Checkpoint, message.encode()));
        }
        Ok(())
    }
}

fn entry(kind: EntryKind, value: Vec<u8>) -> NewEntry {
    NewEntry { kind, header: bytes::Bytes::new(), value: value.into() }
}

fn who(i: usize, random: &mut StdRng) -> Who {
    let (user, agent) = (i % 20, i / 20);
    Who {
        agent: Some(Agent {
            id: format!("agent-{agent}@apps.st-elsewhere.example"),
            instance: None,
            name: Some(
                ["Discharge", "Scheduling", "Coding", "Triage", "Refill", "Intake"][agent].into(),
            ),
            version: Some("1.4.2".into()),
        }),
        assurance: Assurance::Token,
        client_claimed: Some(ClientClaimed { name: "mcp".into(), version: Some("1.9.0".into()) }),
        purpose: Some("TREAT".into()),
        purpose_source: Some(PurposeSource::Token),
        roles: vec!["clinician".into()],
        source: Some(Source {
            ip: format!("10.20.{agent}.{user}"),
            port: Some(random.random_range(40_000..60_000)),
            user_agent: Some("python-httpx/0.28.1".into()),
        }),
        token_id: Some(format!("{:032x}", random.random::<u128>())),
        user: Some(Principal {
            issuer: Some("https://login.st-elsewhere.example".into()),
            name: Some(format!("Person Number {user}")),
            subject: format!("user-{user:04}@st-elsewhere.example"),
        }),
        ..Who::default()
    }
}

fn what(i: usize, random: &mut StdRng) -> What {
    let mut hash = [0; 32];
    random.fill(&mut hash[..]);
    What {
        activity: Some(Activity::R),
        method: Some("tools/call".into()),
        protocol: Some("2025-11-25".into()),
        recipient: Some(Recipient {
            address: None,
            name: "Acme EHR".into(),
            relation: Some(Relation::BusinessAssociate),
        }),
        server: Some("ehr".into()),
        session: Some(Bytes(hash)),
        tool: Some(format!("fhir_read_{i}")),
        tool_definition: Some(Bytes(hash)),
        transport: Some("streamable-http".into()),
        ..What::default()
    }
}

fn journal(folder: &Path, calls: u64) -> Result<(Arc<dyn Journal>, u64), Failure> {
    let mut append = FileAppend::open(folder, "edge-1", 64 << 20)?;
    let (mut world, mut entries, mut bytes) = (World::new()?, Vec::new(), 0);
    for call in 0..calls {
        world.call(&mut entries)?;
        if entries.len() >= 2_000 || call + 1 == calls {
            bytes += entries.iter().map(|e| e.value.len() as u64).sum::<u64>();
            append.append(&entries)?;
            entries.clear();
        }
    }
    Ok((append.journal(), bytes))
}

/// Compressed bytes of each column, largest first.
fn columns(folder: &Path) -> Result<Vec<(String, i64)>, Failure> {
    let mut sizes = BTreeMap::new();
    for day in std::fs::read_dir(folder)? {
        let day = day?.path();
        if !day.file_name().is_some_and(|n| n.to_string_lossy().starts_with("event_date")) {
            continue;
        }
        for file in std::fs::read_dir(day)? {
            let reader = SerializedFileReader::new(std::fs::File::open(file?.path())?)?;
            for group in reader.metadata().row_groups() {
                for column in group.columns() {
                    let name = column.column_path().string();
                    *sizes.entry(name).or_insert(0) += column.compressed_size();
                }
            }
        }
    }
    let mut sizes: Vec<_> = sizes.into_iter().collect();
    sizes.sort_by_key(|(_, size)| -size);
    Ok(sizes)
}

/// What this process has used so far, user and system, from Linux.
fn cpu_seconds() -> Result<f64, Failure> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split(' ').collect();
    let ticks: f64 = fields[12].parse::<f64>()? + fields[13].parse::<f64>()?;
    Ok(ticks / 100.0)
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let calls: u64 = arguments.next().map_or(Ok(500_000), |n| n.parse())?;
    let kept = arguments.next().map(PathBuf::from);
    let folder = kept.clone().unwrap_or_else(|| std::env::temp_dir().join("custody-measure"));
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)?;
    let (journal, written) = journal(&folder.join("journal"), calls)?;
    let events = 2 * calls;
    println!("{events} events, {} bytes each in the journal", written / events);
    let url = folder.join("lake");
    let options = LakeOptions::new("audit.st-elsewhere.example");
    let lake = Lake::open(&url.to_string_lossy(), &options).await?;
    let ingest = Ingest::new(journal, lake.clone(), Settings::default());
    let stop = CancellationToken::new();
    let (begun, cpu) = (Instant::now(), cpu_seconds()?);
    let all_stored = async {
        while ingest.status().first().is_none_or(|s| s.read_to < events) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.cancel();
    };
    let (ran, ()) = tokio::join!(ingest.run(Assigned::All, stop.clone()), all_stored);
    ran?;
    let (took, cpu) = (begun.elapsed(), cpu_seconds()? - cpu);
    let snapshot = lake.events().snapshot().await?;
    let bytes: u64 = snapshot.files().iter().map(|f| f.size).sum();
    let rows: u64 = snapshot.files().iter().filter_map(|f| f.rows).sum();
    let files = snapshot.files().len();
    if rows != events + events / 2_000 {
        return Err(format!("{rows} rows are stored").into());
    }
    let each = |bytes: f64| bytes / events as f64;
    println!(
        "{:.0} events/s, {:.2} s, {files} files",
        events as f64 / took.as_secs_f64(),
        took.as_secs_f64()
    );
    println!("{:.1} µs of CPU per event", cpu / events as f64 * 1e6);
    println!("{:.1} bytes per event in the lake", each(bytes as f64));
    for (name, size) in columns(&url.join("events"))?.into_iter().take(20) {
        println!("  {:7.2}  {name}", each(size as f64));
    }
    if kept.is_none() {
        std::fs::remove_dir_all(&folder)?;
    }
    Ok(())
}
