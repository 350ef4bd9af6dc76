//! What witnesses say of the deployment log: the newest head that they have cosigned, against the
//! log that somebody shows.
//!
//! A witness keeps what it saw last and cosigns nothing that has not grown out of it. So whoever
//! shows a log cannot show another one, or an older one as if it were the newest, to somebody who
//! looks at the time of the cosignatures. Whose cosignatures count the reader's policy says, never
//! the lake.

use custody_schemas::id::Hash;
use custody_schemas::seal::keyring::Keyring;
use custody_schemas::seal::log::verify_head;
use custody_schemas::seal::policy::Policy;
use custody_schemas::seal::{Tree, leaf_hash};

/// What the cosigned head shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Witnessed {
    /// How many entries of the log it is about.
    pub size: u64,
    /// Whether a policy said whose cosignatures count.
    pub checked: bool,
    /// The witnesses of the policy whose cosignatures are valid, and when they cosigned (seconds
    /// since 1970).
    pub by: Vec<(String, u64)>,
    /// How many signature lines the head has beside the log's own.
    pub lines: u64,
}

impl Witnessed {
    /// Up to when the newest cosignature says that this was the newest head.
    #[must_use]
    pub fn newest(&self) -> Option<u64> {
        self.by.iter().map(|(_, at)| *at).max()
    }
}

/// Compares the cosigned head with the log's entries; `None` where there is none and none is asked
/// for.
///
/// # Errors
/// What is wrong, in words.
pub fn check(
    ring: &Keyring,
    note: Option<&str>,
    entries: &[Vec<u8>],
    policy: Option<&Policy>,
) -> Result<Option<Witnessed>, String> {
    let Some(note) = note else { return none(policy) };
    let head = verify_head(ring, note).map_err(|error| error.to_string())?;
    let has = entries.len() as u64;
    if head.size > has {
        return Err(format!(
            "witnesses have cosigned {} entries of the log, and it has only {has}: it was rolled back",
            head.size
        ));
    }
    if root_at(entries, head.size) != head.root {
        return Err(format!(
            "the log's first {} entries are not those that witnesses have cosigned",
            head.size
        ));
    }
    let lines = note.lines().filter(|line| line.starts_with("— ")).count();
    let mut witnessed = Witnessed {
        size: head.size,
        lines: (lines as u64).saturating_sub(1),
        ..Witnessed::default()
    };
    if let Some(policy) = policy {
        let cosigned = policy.judge(note).map_err(|error| error.to_string())?;
        if !cosigned.is_enough {
            let by: Vec<_> = cosigned.by.into_iter().map(|(name, _)| name).collect();
            let by = if by.is_empty() { "none of its witnesses".to_owned() } else { by.join(", ") };
            return Err(format!("your policy asks for more cosignatures: {by} cosigned"));
        }
        (witnessed.checked, witnessed.by) = (true, cosigned.by);
    }
    Ok(Some(witnessed))
}

fn none(policy: Option<&Policy>) -> Result<Option<Witnessed>, String> {
    let asks = |policy: &Policy| !policy.is_met_by_nobody();
    if policy.is_some_and(asks) {
        return Err("no witness has cosigned this log, and your policy asks for some".to_owned());
    }
    Ok(None)
}

fn root_at(entries: &[Vec<u8>], size: u64) -> Hash {
    let mut tree = Tree::new();
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    entries.iter().take(size).for_each(|entry| tree.push_node(leaf_hash(entry)));
    tree.root()
}

#[cfg(test)]
mod tests {
    use custody_schemas::id::Micros;
    use custody_schemas::seal::checkpoint::Checkpoint;
    use custody_schemas::seal::cosignature::Cosigner;
    use custody_schemas::seal::key::Signer;
    use custody_schemas::seal::keyring::WriterKey;

    use super::*;

    fn log() -> Signer {
        Signer::from_seed("a.example", &[5; 32]).unwrap().0
    }

    fn witness(number: u8) -> Cosigner {
        Cosigner::from_seed(&format!("w{number}.example"), &[number; 32]).unwrap().0
    }

    fn ring() -> Keyring {
        let key = WriterKey {
            name: "log".into(),
            vkey: log().vkey().to_owned(),
            from: Micros::new(0),
            until: None,
            retired: false,
        };
        Keyring { deployment: "a.example".into(), log: vec![key], ..Keyring::default() }
    }

    fn entries(kind: u8, count: u64) -> Vec<Vec<u8>> {
        (0..count).map(|i| [&[kind][..], &i.to_be_bytes()].concat()).collect()
    }

    /// The head of these entries, cosigned.
    fn head(entries: &[Vec<u8>], by: &[u8]) -> String {
        let (origin, size) = ("a.example".to_owned(), entries.len() as u64);
        let head = Checkpoint { origin, size, root: root_at(entries, size) };
        let note = head.sign(&log()).unwrap();
        let text = note.split_once("\n\n").unwrap().0.to_owned() + "\n";
        by.iter().fold(note, |note, number| note + &witness(*number).cosign(&text, 100))
    }

    fn policy(quorum: &str) -> Policy {
        let (one, two) = (witness(1).vkey(), witness(2).vkey());
        let text = format!("witness w1 {one}\nwitness w2 {two}\ngroup both all w1 w2\n");
        Policy::parse(&format!("{text}quorum {quorum}\n")).unwrap()
    }

    #[test]
    fn a_log_that_has_grown_out_of_what_was_cosigned_is_witnessed_to_that_point() {
        let note = head(&entries(1, 5), &[1, 2]);
        let grown = check(&ring(), Some(&note), &entries(1, 9), Some(&policy("both")));
        let grown = grown.unwrap().unwrap();
        assert_eq!((grown.size, grown.checked, grown.lines), (5, true, 2));
        assert_eq!(grown.newest(), Some(100));
        let unchecked = check(&ring(), Some(&note), &entries(1, 9), None).unwrap().unwrap();
        assert!(!unchecked.checked && unchecked.by.is_empty());
    }

    #[test]
    fn an_older_log_another_one_and_too_few_witnesses_are_each_told() {
        let note = head(&entries(1, 5), &[1]);
        let told = |count, kind, note: Option<&str>, quorum: &str| {
            check(&ring(), note, &entries(kind, count), Some(&policy(quorum))).unwrap_err()
        };
        assert!(told(4, 1, Some(&note), "w1").contains("rolled back"));
        assert!(told(7, 2, Some(&note), "w1").contains("are not those"));
        assert!(told(7, 1, Some(&note), "both").contains("w1 cosigned"));
        assert!(told(7, 1, Some(&note), "w2").contains("w1 cosigned"));
        assert!(told(7, 1, None, "w1").contains("no witness"));
        assert_eq!(check(&ring(), None, &entries(1, 7), None), Ok(None));
        let signed_by_another = note.replacen("a.example\n", "b.example\n", 1);
        assert!(check(&ring(), Some(&signed_by_another), &entries(1, 7), None).is_err());
    }
}
