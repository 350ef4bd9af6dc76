//! What must hold for every record: golden bytes, one encoding, and a reader that never panics.

use std::sync::Arc;

use proptest::prelude::*;

use crate::body;
use crate::event::{
    Agent, Bodies, BodyRef, Data, Decision, Draft, Event, Outcome, Principal, Source, Subject,
    What, Who,
};
use crate::id::{Bytes, CallId, Uint};
use crate::json::{Int, Json};
use crate::kind::Kind;
use crate::record::{Decoded, MAX_RECORD_BYTES, Place, decode, encode};
use crate::seal::checkpoint::{self, Checkpoint};
use crate::seal::key::Signer;
use crate::seal::keyring::{Keyring, WriterKey};
use crate::seal::{FLAG_PHI, Leaf, Tree};
use crate::words::{Activity, Assurance, Direction, Effect, Status, SubjectStatus};

fn place(seq: u64) -> Place {
    Place {
        stream: "edge-1/0190c8a0-7b1e-7000-8000-000000000001".parse().unwrap(),
        seq,
        at: Uint::new(1_767_225_600_000_000 + seq),
        salt: Bytes([0xa5; 16]),
    }
}

fn ending() -> Draft {
    let mut draft = Draft::new(Kind::CallEnded);
    let call = "0190c8a0-7b1e-7000-8000-0000000000aa".parse::<CallId>().unwrap();
    draft.call = Some(call);
    draft.who = Some(Arc::new(Who {
        agent: Some(Agent { id: "triage-bot".into(), ..Agent::default() }),
        assurance: Assurance::Key,
        user: Some(Principal { subject: "u-17".into(), ..Principal::default() }),
        source: Some(Source { ip: "127.0.0.1".into(), port: Some(5000), user_agent: None }),
        ..Who::default()
    }));
    draft.what = Some(Arc::new(What {
        activity: Some(Activity::R),
        method: Some("tools/call".into()),
        rpc_id: Some("\"a\\/b\"".into()),
        server: Some("ehr".into()),
        tool: Some("read_patient".into()),
        ..What::default()
    }));
    draft.decision = Some(Arc::new(Decision { effect: Effect::Allow, ..Decision::default() }));
    draft.outcome = Some(Outcome {
        duration_us: Some(Uint::new(1_234)),
        status: Status::Ok,
        ..Outcome::default()
    });
    draft.bodies = Bodies {
        response: Some(BodyRef {
            body: Bytes([0xb0; 16]),
            bytes: Uint::new(42),
            chunks: Uint::new(1),
            commitment: Bytes([0xc0; 32]),
        }),
        ..Bodies::default()
    };
    draft.data = Data {
        labels: vec!["phi".into()],
        subject_status: Some(SubjectStatus::Recognised),
        subjects: vec![Subject {
            direction: Direction::Received,
            id: "synthetic-1".into(),
            system: "fhir:Patient".into(),
            ..Subject::default()
        }],
        ..Data::default()
    };
    draft.with("note", "é\u{1f600}\u{7}")
}

#[test]
fn the_golden_record_and_its_leaf_never_change() {
    let record = ending().seal(place(7)).unwrap();
    let golden = include_str!("../golden/call.ended.v1.json").trim_end();
    assert_eq!(String::from_utf8(record.bytes.clone()).unwrap(), golden);
    let leaf = include_str!("../golden/call.ended.v1.leaf").trim_end();
    assert_eq!(hex::encode(record.leaf.as_bytes()), leaf);
    assert_eq!(decode(golden.as_bytes()), Decoded::Event(Box::new(record.event)));
}

/// Compares with a golden file, or makes it when `CUSTODY_GOLDEN` is set.
fn golden(name: &str, bytes: &[u8]) {
    let path = format!("{}/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("CUSTODY_GOLDEN").is_some() {
        std::fs::write(&path, format!("{}\n", hex::encode(bytes))).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert_eq!(hex::encode(bytes), expected.trim_end(), "{name} changed");
}

#[test]
fn what_travels_beside_records_never_changes() {
    let signer = Signer::from_seed("audit.example/edge-1", &[3; 32]).unwrap().0;
    let mut tree = Tree::new();
    let leaves: Vec<_> = (0..3).map(|seq| ending().seal(place(seq)).unwrap().leaf).collect();
    leaves.iter().for_each(|leaf| tree.push(leaf));
    let origin = checkpoint::origin("audit.example", &place(0).stream);
    let note = Checkpoint::of(origin, &tree).sign(&signer).unwrap();
    let message = checkpoint::Message { note, first: 0, leaves };
    golden("checkpoint-message.v1.hex", &message.encode());

    let (_, chunks) = body::split(Bytes([1; 16]), Bytes([2; 32]), &b"body"[..].into());
    golden("chunk-header.v1.hex", &chunks[0].header.encode());

    let root = Signer::from_seed("audit.example/root", &[1; 32]).unwrap().0;
    let writer = WriterKey {
        name: "edge-1".into(),
        vkey: signer.vkey().to_owned(),
        from: Uint::new(5),
        until: None,
        retired: false,
    };
    let ring = Keyring {
        deployment: "audit.example".into(),
        edition: 1,
        writers: vec![writer],
        ..Keyring::default()
    };
    golden("keyring.v1.hex", ring.sign(&root).unwrap().as_bytes());
}

#[test]
fn a_record_of_a_later_version_is_still_an_event_or_at_least_identified() {
    let golden = include_str!("../golden/call.ended.v1.json").trim_end();
    let new_field = golden.replacen("{\"at\"", "{\"aaa\":{\"x\":[1]},\"at\"", 1);
    assert!(matches!(decode(new_field.as_bytes()), Decoded::Event(_)));
    let new_kind =
        golden.replace("\"call.ended\"", "\"call.paused\"").replace("\"code\":3", "\"code\":99");
    let Decoded::Event(event) = decode(new_kind.as_bytes()) else { panic!("not an event") };
    assert_eq!(event.kind, Kind::Unknown("call.paused".into()));
    assert_eq!(event.identity().leaf(new_kind.as_bytes()).code(), 99);
    let new_word = golden.replace("\"status\":\"ok\"", "\"status\":\"paused\"");
    let Decoded::Event(event) = decode(new_word.as_bytes()) else { panic!("not an event") };
    assert_eq!(event.outcome.unwrap().status, Status::Other("paused".into()));
    let new_shape = golden.replace("\"detail\":{", "\"detail\":7,\"x\":{");
    assert!(matches!(decode(new_shape.as_bytes()), Decoded::Identified { identity, .. }
        if identity.seq.get() == 7 && identity.flags & FLAG_PHI != 0));
}

#[test]
fn a_fraction_or_an_unsafe_integer_is_never_an_event() {
    let golden = include_str!("../golden/call.ended.v1.json").trim_end();
    for wrong in ["7.0", "7.5", "1e2", "9007199254740992", "-1"] {
        let text = golden.replace("\"seq\":7", &format!("\"seq\":{wrong}"));
        assert!(matches!(decode(text.as_bytes()), Decoded::Undecodable { .. }), "{wrong}");
    }
    assert!(
        Int::new(9_007_199_254_740_992).is_none() && Int::new(-9_007_199_254_740_991).is_some()
    );
}

#[test]
fn the_most_hostile_strings_still_fit_into_a_record() {
    let nasty = "\u{1}".repeat(3_000);
    let mut draft = ending();
    draft.who = Some(Arc::new(Who {
        roles: vec![nasty.clone(); 100],
        delegation: vec![
            Principal {
                issuer: Some(nasty.clone()),
                name: Some(nasty.clone()),
                subject: nasty.clone()
            };
            100
        ],
        token_id: Some(nasty.clone()),
        purpose: Some(nasty.clone()),
        ..Who::default()
    }));
    draft.what = Some(Arc::new(What {
        method: Some(nasty.clone()),
        tool: Some(nasty.clone()),
        resource: Some(nasty.clone()),
        rpc_id: Some(nasty.clone()),
        ..What::default()
    }));
    let subject = Subject {
        id: nasty.clone(),
        system: nasty.clone(),
        aliases: vec![nasty.clone(); 40],
        ..Subject::default()
    };
    let (ending, _) = crate::split_subjects(vec![subject; 300]);
    draft.data.subject_count = Some(Uint::new(300));
    draft.data.subjects = ending;
    let record = draft.seal(place(0)).unwrap();
    assert!(record.bytes.len() <= MAX_RECORD_BYTES);
    assert!(record.event.truncated.contains(&"what.tool".to_owned()));
}

fn json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::Bool),
        any::<i64>().prop_map(|i| Json::Int(Int::new(i >> 11).unwrap())),
        ".{0,12}".prop_map(Json::Text),
        any::<String>().prop_map(Json::Text),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Json::List),
            prop::collection::btree_map(any::<String>(), inner, 0..6).prop_map(Json::Map),
        ]
    })
}

fn event() -> impl Strategy<Value = Event> {
    let text = prop_oneof![any::<String>(), ".{0,400}"];
    let facts = (text.clone(), text.clone(), text, json(), 0..=crate::id::MAX_INT, any::<bool>());
    facts.prop_map(|(tool, user, id, detail, seq, phi)| {
        let mut draft = ending();
        draft.what = Some(Arc::new(What { tool: Some(tool), ..What::default() }));
        let user = Some(Principal { subject: user, ..Principal::default() });
        draft.who = Some(Arc::new(Who { user, ..Who::default() }));
        draft.data.subjects[0].id = id;
        if !phi {
            draft.data.labels.clear();
        }
        let mut place = place(0);
        place.seq = seq;
        draft.with("x", detail).seal(place).unwrap().event
    })
}

proptest! {
    #[test]
    fn canonical_bytes_equal_those_of_an_independent_jcs_encoder(event in event()) {
        let bytes = encode(&event).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        prop_assert_eq!(&serde_json_canonicalizer::to_vec(&value).unwrap(), &bytes);
        prop_assert_eq!(decode(&bytes), Decoded::Event(Box::new(event)));
    }

    #[test]
    fn decoding_anything_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        drop(decode(&bytes));
    }

    #[test]
    fn decoding_a_damaged_record_never_panics(at in 0usize..600, byte in any::<u8>()) {
        let mut bytes = include_bytes!("../golden/call.ended.v1.json").to_vec();
        let at = at % bytes.len();
        bytes[at] = byte;
        drop(decode(&bytes));
    }

    #[test]
    fn a_leaf_gives_back_its_parts(hash in any::<[u8; 32]>(), at in 0..=crate::id::MAX_INT, code: u16, flags: u16) {
        let leaf = Leaf::new(Bytes(hash), Uint::new(at), code, flags);
        prop_assert_eq!((leaf.record().0, leaf.at().get(), leaf.code(), leaf.flags()), (hash, at, code, flags));
    }
}
