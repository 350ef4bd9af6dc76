//! Keys and keyrings of a deployment in a folder.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

#[test]
fn a_key_is_made_once_for_its_owner_only_and_read_back_ever_after() {
    let dir = tempfile::tempdir().unwrap();
    let keys = Keys::new(dir.path().join("keys"), "audit.example");
    let first = keys.writer("edge-1").unwrap();
    assert_eq!(first.name(), "audit.example/edge-1");
    assert_eq!(keys.writer("edge-1").unwrap().vkey(), first.vkey());
    assert_ne!(keys.root().unwrap().vkey(), first.vkey());
    let path = dir.path().join("keys/edge-1.key");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(keys.writer("edge-1"), Err(KeysError::Exposed(_))));
    assert!(matches!(keys.writer("root"), Err(KeysError::Key { .. })));
    assert!(matches!(keys.writer("../x"), Err(KeysError::Key { .. })));
}

#[test]
fn the_key_of_the_log_carries_the_deployments_name_and_is_no_writers() {
    let dir = tempfile::tempdir().unwrap();
    let keys = Keys::new(dir.path().join("keys"), "audit.example");
    let control = Control::open(&dir.path().join("control")).unwrap();
    assert!(keys.log().unwrap().is_none() && !keys.has_root());
    let signer = keys.enrol_log(&control).unwrap();
    assert_eq!(signer.name(), "audit.example");
    assert_eq!(keys.log().unwrap().unwrap().vkey(), signer.vkey());
    let signed = keys.signed_ring(&control).unwrap().unwrap();
    assert_eq!((signed.ring.of_log(), signed.ring.writers.len()), (vec![signer.vkey()], 0));
    assert!(Keyring::verify(&signed.note, &signed.root_vkey).is_ok());
    assert!(matches!(keys.writer("log"), Err(KeysError::Key { .. })));
}

#[test]
fn a_writer_is_enrolled_once_and_a_new_key_closes_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let keys = Keys::new(dir.path().join("keys"), "audit.example");
    let control = Control::open(&dir.path().join("control")).unwrap();
    let writer = keys.writer("edge-1").unwrap();
    let ring = keys.enrol(&control, &writer).unwrap();
    assert_eq!((ring.edition, ring.writers.len()), (1, 1));
    assert_eq!(ring.writers[0].name, "edge-1");
    assert_eq!(keys.enrol(&control, &writer).unwrap(), ring);
    fs::remove_file(dir.path().join("keys/edge-1.key")).unwrap();
    drop(control);
    let control = Control::open(&dir.path().join("control")).unwrap();
    let ring = keys.enrol(&control, &keys.writer("edge-1").unwrap()).unwrap();
    assert_eq!((ring.edition, ring.writers.len()), (2, 2));
    assert!(ring.writers[0].until.is_some() && ring.writers[1].until.is_none());
    fs::remove_file(dir.path().join("keys/root.key")).unwrap();
    let refused = keys.enrol(&control, &writer);
    assert!(matches!(refused, Err(KeysError::Keyring(_))));
}

#[test]
fn a_writer_changes_its_key_only_when_the_new_one_is_there_and_on_the_keyring() {
    let dir = tempfile::tempdir().unwrap();
    let keys = Keys::new(dir.path().join("keys"), "audit.example");
    let control = Control::open(&dir.path().join("control")).unwrap();
    let old = keys.writer("edge-1").unwrap().vkey().to_owned();
    keys.enrol(&control, &keys.writer("edge-1").unwrap()).unwrap();
    assert!(keys.next(&control, "edge-1").unwrap().is_none());
    let ring = keys.rotate(&control, "edge-1", None).unwrap();
    let in_force = |ring: &Keyring| -> Vec<String> {
        let open = ring.writers.iter().filter(|key| key.until.is_none());
        open.map(|key| key.vkey.clone()).collect()
    };
    assert_eq!((in_force(&ring).len(), ring.edition), (2, 2));
    assert_eq!(keys.rotate(&control, "edge-1", None).unwrap(), ring, "one next key at a time");
    assert_eq!(keys.writer("edge-1").unwrap().vkey(), old, "until a run begins");
    let ring = keys.enrol(&control, &keys.writer("edge-1").unwrap()).unwrap();
    assert_eq!(in_force(&ring).len(), 2, "a start with the old key closes nothing");
    let new = keys.next(&control, "edge-1").unwrap().unwrap().vkey().to_owned();
    assert_ne!(new, old);
    assert_eq!(keys.writer("edge-1").unwrap().vkey(), new);
    assert!(keys.next(&control, "edge-1").unwrap().is_none());
    let ring = keys.add(&control, "edge-1", &new).unwrap();
    assert_eq!(in_force(&ring), std::slice::from_ref(&new));
    assert_eq!(keys.add(&control, "edge-1", &new).unwrap(), ring, "nothing changes twice");
    // A key that somebody put there and the root has not signed stays where it is.
    let other = Signer::from_seed("audit.example/edge-1", &[9; 32]).unwrap();
    store(&keys.dir, &keys.path("edge-1.next"), &other.1).unwrap();
    assert!(keys.next(&control, "edge-1").unwrap().is_none());
    assert_eq!(keys.writer("edge-1").unwrap().vkey(), new);
}

#[test]
fn a_retired_writer_comes_back_only_by_somebodys_decision() {
    let dir = tempfile::tempdir().unwrap();
    let keys = Keys::new(dir.path().join("keys"), "audit.example");
    let control = Control::open(&dir.path().join("control")).unwrap();
    let writer = keys.writer("edge-1").unwrap();
    assert!(matches!(keys.retire(&control, "edge-1"), Err(KeysError::Unknown(_))));
    keys.enrol(&control, &writer).unwrap();
    let ring = keys.retire(&control, "edge-1").unwrap();
    assert!(ring.writers[0].retired && ring.writers[0].until.is_some());
    assert_eq!(keys.retire(&control, "edge-1").unwrap(), ring);
    assert!(matches!(keys.enrol(&control, &writer), Err(KeysError::Retired(_))));
    assert!(matches!(keys.admit(&control, &writer), Err(KeysError::Retired(_))));
    let ring = keys.add(&control, "edge-1", writer.vkey()).unwrap();
    assert_eq!((ring.edition, ring.writers.len()), (3, 2));
    assert!(keys.enrol(&control, &writer).is_ok());
}

#[test]
fn a_key_of_another_name_or_deployment_does_not_come_onto_the_keyring() {
    let dir = tempfile::tempdir().unwrap();
    let keys = Keys::new(dir.path().join("keys"), "audit.example");
    let control = Control::open(&dir.path().join("control")).unwrap();
    for name in ["audit.example/edge-2", "audit.other/edge-1", "audit.example"] {
        let other = Signer::from_seed(name, &[9; 32]).unwrap().0;
        assert!(matches!(
            keys.add(&control, "edge-1", other.vkey()),
            Err(KeysError::Source { .. })
        ));
    }
    assert!(keys.add(&control, "edge-1", "nonsense").is_err());
    assert!(keys.ring(&control).unwrap().is_none());
}

#[test]
fn the_root_may_be_elsewhere_and_signs_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hidden.key");
    let (root, text) = Signer::from_seed("audit.example/root", &[1; 32]).unwrap();
    store(dir.path(), &path, &text).unwrap();
    let keys = Keys::new(dir.path().join("keys"), "audit.example");
    let keys = keys.with_sources(vec![("root".to_owned(), Source::File(path))]);
    let control = Control::open(&dir.path().join("control")).unwrap();
    assert!(keys.has_root());
    keys.enrol(&control, &keys.writer("edge-1").unwrap()).unwrap();
    let signed = keys.signed_ring(&control).unwrap().unwrap();
    assert_eq!(signed.root_vkey, root.vkey());
    assert!(!dir.path().join("keys/root.key").exists());
}
