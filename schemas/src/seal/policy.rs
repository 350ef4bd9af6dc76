//! Which witnesses have to have cosigned a checkpoint: C2SP tlog-policy.
//!
//! An auditor writes one file; the part that asks witnesses and whoever verifies read the same.

use std::collections::BTreeSet;

use super::cosignature::CosignerKey;
use super::key::{KeyError, open};

/// How many logs, witnesses and groups a policy may have.
const MAX: usize = 64;

/// A line of a policy cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct PolicyError {
    /// The line, from 1; the one after the last when something is missing.
    pub line: usize,
    /// What is wrong.
    pub problem: String,
}

/// A witness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Witness {
    /// Its name in the policy.
    pub name: String,
    /// Its key.
    pub key: CosignerKey,
    /// Where checkpoints are submitted, if it can be asked.
    pub url: Option<String>,
}

/// Members of which so many must have cosigned.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    name: String,
    least: usize,
    members: Vec<Member>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Member {
    Witness(usize),
    Group(usize),
}

/// A policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    logs: Vec<String>,
    witnesses: Vec<Witness>,
    groups: Vec<Group>,
    quorum: Option<Member>,
}

/// Who has cosigned a note.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cosigned {
    /// The witnesses by their names in the policy, and when (seconds since 1970).
    pub by: Vec<(String, u64)>,
    /// Whether that is enough.
    pub is_enough: bool,
}

impl Policy {
    /// Reads a policy.
    ///
    /// # Errors
    /// At the first line that cannot be used.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let mut reading = Reading::default();
        let mut last = 0;
        for (index, line) in text.split('\n').enumerate() {
            last = index + 1;
            let wrong = |problem| PolicyError { line: last, problem };
            if line.chars().any(|c| c.is_ascii_control() && c != '\t') {
                return Err(wrong("it holds a control character".to_owned()));
            }
            let words: Vec<_> = line.split([' ', '\t']).filter(|word| !word.is_empty()).collect();
            if !words.first().is_none_or(|word| word.starts_with('#')) {
                reading.line(&words).map_err(wrong)?;
            }
        }
        if !reading.has_quorum {
            let problem = "there is no line `quorum NAME` (or `quorum none`)".to_owned();
            return Err(PolicyError { line: last, problem });
        }
        Ok(reading.policy)
    }

    /// The witnesses.
    #[must_use]
    pub fn witnesses(&self) -> &[Witness] {
        &self.witnesses
    }

    /// Whether it asks for no cosignature at all.
    #[must_use]
    pub const fn is_met_by_nobody(&self) -> bool {
        self.quorum.is_none()
    }

    /// Who has cosigned a checkpoint's note, and whether it is enough. A wrong line in the name of
    /// a witness counts as none.
    ///
    /// # Errors
    /// When the policy names logs and none of them has signed the note.
    pub fn judge(&self, note: &str) -> Result<Cosigned, KeyError> {
        if !self.logs.is_empty() {
            let opened = self.logs.iter().find_map(|log| open(note, &[log]).ok());
            let unsigned = || KeyError::Note("no log of the policy has signed it".to_owned());
            opened.ok_or_else(unsigned)?;
        }
        let (mut by, mut who) = (Vec::new(), BTreeSet::new());
        for (index, witness) in self.witnesses.iter().enumerate() {
            if let Ok(Some(at)) = witness.key.cosigned(note) {
                by.push((witness.name.clone(), at));
                who.insert(index);
            }
        }
        let is_enough = self.quorum.is_none_or(|quorum| self.has(quorum, &who));
        Ok(Cosigned { by, is_enough })
    }

    /// Whether a member has cosigned. Groups name only earlier ones, so this comes to an end.
    fn has(&self, member: Member, who: &BTreeSet<usize>) -> bool {
        match member {
            Member::Witness(index) => who.contains(&index),
            Member::Group(index) => self.groups.get(index).is_some_and(|group| {
                let have = group.members.iter().filter(|member| self.has(**member, who)).count();
                have >= group.least
            }),
        }
    }
}

/// A policy in the reading.
#[derive(Default)]
struct Reading {
    policy: Policy,
    has_quorum: bool,
    /// Those that are a member of a group already.
    taken: BTreeSet<String>,
}

impl Reading {
    fn line(&mut self, words: &[&str]) -> Result<(), String> {
        match words {
            ["log", vkey] | ["log", vkey, _] => self.log(vkey),
            ["witness", name, vkey] => self.witness(name, vkey, None),
            ["witness", name, vkey, url] => self.witness(name, vkey, Some((*url).to_owned())),
            ["group", name, least, members @ ..] => self.group(name, least, members),
            ["quorum", name] => self.quorum(name),
            _ => Err("it is none of: log VKEY [URL], witness NAME VKEY [URL], \
                      group NAME all|any|K NAME…, quorum NAME|none"
                .to_owned()),
        }
    }

    fn log(&mut self, vkey: &str) -> Result<(), String> {
        super::key::check(vkey).map_err(|error| error.to_string())?;
        let key = |vkey: &str| vkey.splitn(3, '+').nth(2).map(str::to_owned);
        if self.policy.logs.iter().any(|known| key(known) == key(vkey)) {
            return Err("this log's key stands twice".to_owned());
        }
        room(self.policy.logs.len())?;
        self.policy.logs.push(vkey.to_owned());
        Ok(())
    }

    fn witness(&mut self, name: &str, vkey: &str, url: Option<String>) -> Result<(), String> {
        self.is_new(name)?;
        let key = CosignerKey::parse(vkey).map_err(|error| error.to_string())?;
        if self.policy.witnesses.iter().any(|known| known.key.is_same_key(&key)) {
            return Err("this witness's key stands twice".to_owned());
        }
        room(self.policy.witnesses.len())?;
        self.policy.witnesses.push(Witness { name: name.to_owned(), key, url });
        Ok(())
    }

    fn group(&mut self, name: &str, least: &str, members: &[&str]) -> Result<(), String> {
        self.is_new(name)?;
        let all = members.len();
        let least = match least {
            "all" => all,
            "any" => 1,
            number => number.parse().unwrap_or(0),
        };
        if least == 0 || least > all {
            return Err("it must say `all`, `any`, or how many of its members".to_owned());
        }
        for member in members {
            if !self.taken.insert((*member).to_owned()) {
                return Err(format!("{member} is a member of a group already"));
            }
        }
        let members = members.iter().map(|name| self.find(name)).collect::<Result<_, _>>()?;
        room(self.policy.groups.len())?;
        self.policy.groups.push(Group { name: name.to_owned(), least, members });
        Ok(())
    }

    fn quorum(&mut self, name: &str) -> Result<(), String> {
        if std::mem::replace(&mut self.has_quorum, true) {
            return Err("there is a quorum already".to_owned());
        }
        self.policy.quorum = if name == "none" { None } else { Some(self.find(name)?) };
        Ok(())
    }

    fn find(&self, name: &str) -> Result<Member, String> {
        let witness = self.policy.witnesses.iter().position(|witness| witness.name == name);
        let group = || self.policy.groups.iter().position(|group| group.name == name);
        let found = witness.map(Member::Witness).or_else(|| group().map(Member::Group));
        found.ok_or_else(|| format!("no line before it defines {name}"))
    }

    fn is_new(&self, name: &str) -> Result<(), String> {
        if name == "none" || self.find(name).is_ok() {
            return Err(format!("the name {name} is taken"));
        }
        Ok(())
    }
}

fn room(has: usize) -> Result<(), String> {
    if has < MAX { Ok(()) } else { Err(format!("more than {MAX} of them are not supported")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::cosignature::Cosigner;
    use crate::seal::key::Signer;

    const TEXT: &str = "a.example\n7\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";

    fn witness(number: u8) -> Cosigner {
        Cosigner::from_seed(&format!("w{number}.example"), &[number; 32]).unwrap().0
    }

    fn log() -> Signer {
        Signer::from_seed("a.example", &[99; 32]).unwrap().0
    }

    /// The two levels of groups of the specification's example.
    fn example() -> String {
        let mut text = format!("# a comment\n\n log\t{}\n", log().vkey());
        for (name, number) in [("X1", 1), ("X2", 2), ("X3", 3), ("Y1", 4), ("Y2", 5)] {
            text.push_str(&format!("witness {name} {}\n", witness(number).vkey()));
        }
        text + "group X 2 X1 X2 X3\ngroup Y any Y1 Y2\ngroup X-and-Y all X Y\nquorum X-and-Y\n"
    }

    fn cosigned(by: &[u8]) -> String {
        let note = log().sign(TEXT).unwrap();
        by.iter().fold(note, |note, number| note + &witness(*number).cosign(TEXT, 5))
    }

    #[test]
    fn a_quorum_of_groups_is_met_by_enough_of_each_and_by_nothing_less() {
        let policy = Policy::parse(&example()).unwrap();
        let enough = |by: &[u8]| policy.judge(&cosigned(by)).unwrap().is_enough;
        assert!(enough(&[1, 3, 5]) && enough(&[1, 2, 3, 4, 5]));
        assert!(!enough(&[]) && !enough(&[1, 2]) && !enough(&[1, 4, 5]) && !enough(&[1, 9, 4]));
        let by = policy.judge(&cosigned(&[2, 4])).unwrap().by;
        assert_eq!(by, [("X2".to_owned(), 5), ("Y1".to_owned(), 5)]);
    }

    #[test]
    fn a_log_that_is_not_named_and_a_forged_cosignature_do_not_count() {
        let policy = Policy::parse(&example()).unwrap();
        let stranger = Signer::from_seed("a.example", &[98; 32]).unwrap().0;
        let note = [1, 2, 4].iter().fold(stranger.sign(TEXT).unwrap(), |note, number| {
            note + &witness(*number).cosign(TEXT, 5)
        });
        assert!(policy.judge(&note).is_err());
        let forged = cosigned(&[1, 2]) + &witness(4).cosign("a.example\n8\nother\n", 5);
        assert!(!policy.judge(&forged).unwrap().is_enough);
        let none = Policy::parse("quorum none\n").unwrap();
        assert!(none.judge(&note).unwrap().is_enough);
    }

    #[test]
    fn every_mistake_names_its_line() {
        let (one, two) = (witness(1).vkey(), witness(2).vkey());
        let begin = format!("witness A {one}\nwitness B {two}\n");
        for (end, line, what) in [
            ("quorum C\n", 3, "defines C"),
            ("", 3, "no line `quorum"),
            ("quorum A\nquorum B\n", 4, "already"),
            ("group G 3 A B\nquorum G\n", 3, "how many"),
            ("group G any A A\nquorum G\n", 3, "member of a group already"),
            ("group G any A\ngroup H any A\nquorum H\n", 4, "member of a group already"),
            ("group A any B\nquorum A\n", 3, "taken"),
            ("group none any B\nquorum A\n", 3, "taken"),
            ("group G any none\nquorum G\n", 3, "defines none"),
            ("witnes C x\n", 3, "it is none of"),
            ("quorum A\r\n", 3, "control character"),
        ] {
            let error = Policy::parse(&format!("{begin}{end}")).unwrap_err();
            assert_eq!(error.line, line, "{end:?}: {error}");
            assert!(error.problem.contains(what), "{end:?}: {error}");
        }
        let renamed = Cosigner::from_seed("other.example", &[1; 32]).unwrap().0.vkey();
        let twice = Policy::parse(&format!("{begin}witness C {renamed}\nquorum A\n"));
        assert!(twice.unwrap_err().problem.contains("twice"));
        let twice = Policy::parse(&format!("log {0}\nlog {0}\nquorum none\n", log().vkey()));
        assert_eq!(twice.unwrap_err().line, 2);
        assert!(Policy::parse(&format!("{begin}witness C {}\n", log().vkey())).is_err());
    }
}
