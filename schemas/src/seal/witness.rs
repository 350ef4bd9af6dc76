//! What a log and a witness say to each other: C2SP tlog-witness, and when a witness cosigns.
//!
//! A witness cosigns a checkpoint only if a key of the log has signed it and if it has grown out of
//! the one that it cosigned last. It needs to keep no more than that one.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::checkpoint::Checkpoint;
use super::consistency::{MAX_HASHES, holds};
use super::key::open;
use super::tree::Tree;
use crate::id::{Bytes, Hash};

/// The path below a witness's submission prefix.
pub const PATH: &str = "add-checkpoint";
/// What the body of a conflict is.
pub const SIZE_TYPE: &str = "text/x.tlog.size";
/// The longest submission that is read.
pub const MAX_BYTES: usize = 64 << 10;

/// A checkpoint on its way to a witness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    /// The size that the witness has cosigned last.
    pub old: u64,
    /// Proof that the checkpoint's tree has grown out of that.
    pub proof: Vec<Hash>,
    /// The checkpoint's note.
    pub note: String,
}

impl Submission {
    /// The body of the request.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = format!("old {}\n", self.old);
        for hash in &self.proof {
            // Writing to a String cannot fail.
            writeln!(text, "{}", BASE64_STANDARD.encode(hash.0)).unwrap_or_default();
        }
        text + "\n" + &self.note
    }

    /// The reverse of [`encode`](Self::encode); nothing when the bytes are anything else.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (head, note) = text.split_once("\n\n")?;
        let mut lines = head.split('\n');
        let old = number(lines.next()?.strip_prefix("old ")?)?;
        let hash = |line: &str| Some(Bytes(BASE64_STANDARD.decode(line).ok()?.try_into().ok()?));
        let proof = lines.map(hash).collect::<Option<Vec<Hash>>>()?;
        (proof.len() <= MAX_HASHES).then(|| Self { old, proof, note: note.to_owned() })
    }
}

/// A number in decimal without leading zeros.
#[must_use]
pub fn number(text: &str) -> Option<u64> {
    let number = text.parse().ok()?;
    (u64::to_string(&number) == text).then_some(number)
}

/// A tree's size and root.
pub type Head = (u64, Hash);

/// What a witness makes of a submission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It cosigns this text once it has stored the checkpoint.
    Cosign {
        /// The checkpoint.
        checkpoint: Checkpoint,
        /// What is cosigned.
        text: String,
    },
    /// The body is no submission, or asks for something that is none.
    Malformed,
    /// It does not know the log.
    UnknownLog,
    /// No key of the log has signed it.
    NotSigned,
    /// It has cosigned another size last: this one.
    Conflict(u64),
    /// It has cosigned another tree of the same size: the log has two histories.
    Fork(u64),
    /// The proof does not lead from what it has cosigned to this.
    NotGrown,
}

impl Judgement {
    /// The status of the answer.
    #[must_use]
    pub const fn status(&self) -> u16 {
        match self {
            Self::Cosign { .. } => 200,
            Self::Malformed => 400,
            Self::NotSigned => 403,
            Self::UnknownLog => 404,
            Self::Conflict(_) | Self::Fork(_) => 409,
            Self::NotGrown => 422,
        }
    }
}

/// The public keys of each log, by its origin.
pub type Logs = BTreeMap<String, Vec<String>>;

/// Judges a submission; `latest` is what was cosigned last of the log of an origin.
#[must_use]
pub fn judge(body: &[u8], logs: &Logs, latest: impl Fn(&str) -> Option<Head>) -> Judgement {
    let Some(submission) = Submission::decode(body) else { return Judgement::Malformed };
    let origin = submission.note.lines().next().unwrap_or_default();
    let Some(keys) = logs.get(origin) else { return Judgement::UnknownLog };
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let Ok(text) = open(&submission.note, &keys) else { return Judgement::NotSigned };
    let Ok(checkpoint) = Checkpoint::parse(&text) else { return Judgement::Malformed };
    if checkpoint.origin != origin || submission.old > checkpoint.size {
        return Judgement::Malformed;
    }
    let known = latest(origin).unwrap_or_else(|| (0, Tree::new().root()));
    if submission.old != known.0 {
        return Judgement::Conflict(known.0);
    }
    let said = (checkpoint.size, checkpoint.root);
    if said.0 == known.0 && said.1 != known.1 {
        return Judgement::Fork(known.0);
    }
    if !holds(known, said, &submission.proof) {
        return Judgement::NotGrown;
    }
    Judgement::Cosign { checkpoint, text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::key::Signer;
    use crate::seal::leaf_hash;

    fn signer() -> Signer {
        Signer::from_seed("a.example", &[5; 32]).unwrap().0
    }

    fn logs() -> Logs {
        Logs::from([("a.example".to_owned(), vec![signer().vkey().to_owned()])])
    }

    /// A head of a log of one kind of entry; the kinds are different histories.
    fn head(kind: u8, size: u64) -> Head {
        let mut tree = Tree::new();
        (0..size).for_each(|_| tree.push_node(leaf_hash(&[kind])));
        (tree.size(), tree.root())
    }

    fn note(origin: &str, (size, root): Head, signer: &Signer) -> String {
        Checkpoint { origin: origin.to_owned(), size, root }.sign(signer).unwrap()
    }

    fn submit(old: u64, proof: Vec<Hash>, note: String, latest: Option<Head>) -> Judgement {
        judge(Submission { old, proof, note }.encode().as_bytes(), &logs(), |_| latest)
    }

    #[test]
    fn the_example_of_the_specification_reads_back() {
        let text = "old 20852014\nPlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=\njrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=\n5+pKlUdi2LeF/BcMHBn+Ku6yhPGNCswZZD1X/6QgPd8=\n/6WVhPs2CwSsb5rYBH5cjHV/wSmA79abXAwhXw3Kj/0=\n\nexample.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n";
        let read = Submission::decode(text.as_bytes()).unwrap();
        assert_eq!((read.old, read.proof.len()), (20_852_014, 4));
        assert_eq!(read.encode(), text);
        for wrong in ["old 007\n\nnote", "old 7\nshort\n\nnote", "new 7\n\nnote", "old 7\nnote"] {
            assert_eq!(Submission::decode(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn a_log_that_has_grown_is_cosigned_from_nothing_on() {
        let (three, four) = (head(1, 3), head(1, 4));
        let cosigned = |judgement| matches!(judgement, Judgement::Cosign { .. });
        assert!(cosigned(submit(0, Vec::new(), note("a.example", three, &signer()), None)));
        let again = note("a.example", three, &signer());
        assert!(cosigned(submit(3, Vec::new(), again, Some(three))));
        // of 3 in 4: the third leaf, the fourth, the first two
        let leaf = Bytes(leaf_hash(&[1]));
        let pair = Bytes(crate::seal::join(leaf.0, leaf.0));
        let proof = vec![leaf, leaf, pair];
        let grown = note("a.example", four, &signer());
        assert!(cosigned(submit(3, proof.clone(), grown.clone(), Some(three))));
        assert_eq!(submit(3, proof, grown, Some(head(2, 3))), Judgement::NotGrown);
    }

    #[test]
    fn another_history_an_older_one_a_strangers_and_a_malformed_one_are_refused_as_specified() {
        let (three, fork) = (head(1, 3), head(2, 3));
        let said = |head| note("a.example", head, &signer());
        let status = |judgement: Judgement| judgement.status();
        assert_eq!(submit(3, Vec::new(), said(fork), Some(three)), Judgement::Fork(3));
        assert_eq!(submit(0, Vec::new(), said(fork), Some(three)), Judgement::Conflict(3));
        assert_eq!(submit(2, Vec::new(), said(head(1, 2)), Some(three)), Judgement::Conflict(3));
        assert_eq!(status(submit(4, Vec::new(), said(three), Some(three))), 400);
        assert_eq!(status(submit(0, vec![three.1], said(three), None)), 422);
        let stranger = Signer::from_seed("a.example", &[6; 32]).unwrap().0;
        assert_eq!(status(submit(0, Vec::new(), note("a.example", three, &stranger), None)), 403);
        assert_eq!(status(submit(0, Vec::new(), note("b.example", three, &signer()), None)), 404);
        assert_eq!(judge(b"nonsense", &logs(), |_| None).status(), 400);
    }
}
