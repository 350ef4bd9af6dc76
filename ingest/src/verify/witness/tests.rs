//! Witnesses in memory, who judge as the real ones do.

use std::sync::Mutex;

use custody_lake::ask::{Answer, Answering};
use custody_schemas::seal::cosignature::Cosigner;
use custody_schemas::seal::witness::{Head, Judgement, Logs, judge};
use object_store::memory::InMemory;

use super::*;

fn signer() -> Signer {
    Signer::from_seed("a.example", &[5; 32]).unwrap().0
}

/// One that remembers what it cosigned last.
struct Remembering {
    key: Cosigner,
    latest: Mutex<Option<Head>>,
    is_away: Mutex<bool>,
}

impl Remembering {
    fn new(number: u8) -> Arc<Self> {
        let key = Cosigner::from_seed(&format!("w{number}.example"), &[number; 32]).unwrap().0;
        Arc::new(Self { key, latest: Mutex::default(), is_away: Mutex::default() })
    }

    fn answer(&self, body: &str) -> Result<Answer, String> {
        if *self.is_away.lock().unwrap() {
            return Err("nobody answers".to_owned());
        }
        let logs = Logs::from([("a.example".to_owned(), vec![signer().vkey().to_owned()])]);
        let mut latest = self.latest.lock().unwrap();
        let judgement = judge(body.as_bytes(), &logs, |_| *latest);
        let status = judgement.status();
        let body = match judgement {
            Judgement::Cosign { checkpoint, text } => {
                *latest = Some((checkpoint.size, checkpoint.root));
                self.key.cosign(&text, 100)
            }
            Judgement::Conflict(size) | Judgement::Fork(size) => format!("{size}\n"),
            Judgement::Malformed
            | Judgement::UnknownLog
            | Judgement::NotSigned
            | Judgement::NotGrown => String::new(),
        };
        Ok(Answer { status, body: body.into_bytes() })
    }
}

fn witnesses(all: &[Arc<Remembering>], quorum: &str) -> Witnesses {
    let mut text = String::new();
    for (index, witness) in all.iter().enumerate() {
        text.push_str(&format!("witness w{index} {} {index}\n", witness.key.vkey()));
    }
    let names: Vec<_> = (0..all.len()).map(|index| format!("w{index}")).collect();
    text.push_str(&format!("group enough {quorum} {}\nquorum enough\n", names.join(" ")));
    let all = all.to_vec();
    let submit = move |url: String, body: String| -> Answering {
        let index: usize = url.split('/').next().unwrap().parse().unwrap();
        let answer = all[index].answer(&body);
        Box::pin(async move { answer })
    };
    Witnesses { policy: Arc::new(Policy::parse(&text).unwrap()), submit: Arc::new(submit) }
}

struct World {
    seals: Seals,
    log: DeploymentLog,
    asking: Asking,
}

impl World {
    async fn new(witnesses: Witnesses) -> Self {
        let seals = Seals::new(Arc::new(InMemory::new()));
        let log = DeploymentLog::open(seals.clone(), "a.example").await.unwrap();
        let asking = Asking::new(witnesses, seals.clone());
        Self { seals, log, asking }
    }

    async fn append(&mut self, entries: std::ops::Range<u32>, kind: &str) {
        let new: Vec<_> = entries.map(|i| format!("{kind} {i}\n")).collect();
        self.log.append(&new, &signer()).await.unwrap();
    }

    async fn pass(&mut self) -> Vec<Alert> {
        self.asking.pass(&mut self.log, &signer()).await.unwrap()
    }

    /// The size of the head that is kept as cosigned, and by whom.
    async fn kept(&self) -> Option<(u64, Vec<String>)> {
        let note = self.seals.text(WITNESSED_PATH).await.unwrap()?;
        let judged = self.asking.witnesses.policy.judge(&note).unwrap();
        Some((stated(&note).unwrap().size, judged.by.into_iter().map(|(name, _)| name).collect()))
    }
}

#[tokio::test]
async fn a_growing_log_is_cosigned_at_each_pass_and_by_a_witness_that_had_been_away() {
    let all = [Remembering::new(1), Remembering::new(2)];
    let mut world = World::new(witnesses(&all, "1")).await;
    assert!(world.pass().await.is_empty(), "an empty log needs no witness");
    world.append(0..3, "entry").await;
    *all[1].is_away.lock().unwrap() = true;
    assert!(world.pass().await.is_empty());
    assert_eq!(world.kept().await, Some((3, vec!["w0".to_owned()])));
    assert_eq!(world.asking.status().1[1].failures, 1);
    *all[1].is_away.lock().unwrap() = false;
    world.pass().await;
    assert_eq!(world.kept().await, Some((3, vec!["w0".to_owned(), "w1".to_owned()])));
    world.append(3..700, "entry").await;
    world.pass().await;
    assert_eq!(world.kept().await.unwrap().0, 700);
}

#[tokio::test]
async fn too_few_witnesses_leave_the_older_cosigned_head_where_it_is() {
    let all = [Remembering::new(1), Remembering::new(2)];
    let mut world = World::new(witnesses(&all, "all")).await;
    world.append(0..2, "entry").await;
    world.pass().await;
    *all[0].is_away.lock().unwrap() = true;
    world.append(2..4, "entry").await;
    assert!(world.pass().await.is_empty());
    assert_eq!(world.kept().await.unwrap().0, 2);
    assert!(world.asking.status().1[0].problem.is_some());
}

#[tokio::test]
async fn somebody_who_asks_anew_goes_on_from_what_the_witness_has_seen() {
    let all = [Remembering::new(1)];
    let mut world = World::new(witnesses(&all, "1")).await;
    world.append(0..5, "entry").await;
    world.pass().await;
    world.append(5..9, "entry").await;
    world.asking = Asking::new(witnesses(&all, "1"), world.seals.clone());
    assert!(world.pass().await.is_empty());
    assert_eq!(world.kept().await.unwrap().0, 9);
}

#[tokio::test]
async fn a_log_that_was_rolled_back_or_has_a_second_history_is_alarming_once() {
    let all = [Remembering::new(1)];
    let mut world = World::new(witnesses(&all, "1")).await;
    world.append(0..9, "entry").await;
    world.pass().await;
    let mut older = World::new(witnesses(&all, "1")).await;
    older.append(0..4, "entry").await;
    let alert = |finding, at| Alert {
        place: "log".to_owned(),
        finding,
        at,
        witness: Some("w0".to_owned()),
    };
    assert_eq!(older.pass().await, [alert("rolled_back", 9)]);
    assert_eq!(older.pass().await, []);
    assert_eq!(older.kept().await, None);
    for size in [9, 12] {
        let mut other = World::new(witnesses(&all, "1")).await;
        other.append(0..size, "forged").await;
        assert_eq!(other.pass().await, [alert("forked", 9)], "size {size}");
        assert_eq!(other.kept().await, None);
    }
}

#[tokio::test]
async fn an_answer_without_a_valid_line_of_the_witness_adds_nothing() {
    let all = [Remembering::new(1)];
    let mut lying = witnesses(&all, "1");
    let stranger = Cosigner::from_seed("w1.example", &[9; 32]).unwrap().0;
    lying.submit = Arc::new(move |_, body: String| {
        let text = body.split("\n\n").nth(1).unwrap().to_owned() + "\n";
        let body = format!("garbage\n{}", stranger.cosign(&text, 5)).into_bytes();
        Box::pin(async move { Ok(Answer { status: 200, body }) })
    });
    let mut world = World::new(lying).await;
    world.append(0..3, "entry").await;
    assert!(world.pass().await.is_empty());
    assert_eq!(world.kept().await, None);
    assert!(world.asking.status().1[0].problem.as_ref().unwrap().contains("no valid"));
}
