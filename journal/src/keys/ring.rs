//! Changes of a keyring. Each says whether it has changed anything; the edition is the caller's.

use custody_schemas::id::Uint;
use custody_schemas::seal::keyring::{Keyring, LOG, WriterKey};

/// Whether the keyring names the writer at all.
pub(super) fn has(ring: &Keyring, name: &str) -> bool {
    ring.writers.iter().any(|key| key.name == name)
}

/// Whether this key of the writer is in force.
pub(super) fn is_in_force(ring: &Keyring, name: &str, vkey: &str) -> bool {
    let is = |key: &WriterKey| is_open(key, name) && key.vkey == vkey;
    ring.writers.iter().any(is)
}

/// Whether the writer was retired and not taken on again.
pub(super) fn is_retired(ring: &Keyring, name: &str) -> bool {
    let mut keys = ring.writers.iter().filter(|key| key.name == name);
    let open = ring.writers.iter().any(|key| is_open(key, name));
    !open && keys.any(|key| key.retired)
}

/// Lists the key of a writer, or of the log; unless it is in force, every other one of that name
/// is closed.
pub(super) fn enter(ring: &mut Keyring, name: &str, vkey: &str, now: Uint) -> bool {
    if keys(ring, name).iter().any(|key| is_open(key, name) && key.vkey == vkey) {
        return false;
    }
    add(ring, name, vkey, now)
}

/// Lists the key and closes every other one of that name.
pub(super) fn add(ring: &mut Keyring, name: &str, vkey: &str, now: Uint) -> bool {
    let others = keys(ring, name).iter_mut();
    let mut changed = false;
    for key in others.filter(|key| is_open(key, name) && key.vkey != vkey) {
        key.until = Some(now);
        changed = true;
    }
    beside(ring, name, vkey, now) || changed
}

/// Lists the key beside those that are in force.
pub(super) fn beside(ring: &mut Keyring, name: &str, vkey: &str, now: Uint) -> bool {
    let keys = keys(ring, name);
    if keys.iter().any(|key| is_open(key, name) && key.vkey == vkey) {
        return false;
    }
    keys.push(WriterKey {
        name: name.to_owned(),
        vkey: vkey.to_owned(),
        from: now,
        until: None,
        retired: false,
    });
    true
}

/// Closes every key of a writer, which will write no more.
pub(super) fn retire(ring: &mut Keyring, name: &str, now: Uint) -> bool {
    let mut changed = false;
    for key in ring.writers.iter_mut().filter(|key| key.name == name && !key.retired) {
        key.until = key.until.or(Some(now));
        key.retired = true;
        changed = true;
    }
    changed
}

fn is_open(key: &WriterKey, name: &str) -> bool {
    key.name == name && key.until.is_none() && !key.retired
}

fn keys<'r>(ring: &'r mut Keyring, name: &str) -> &'r mut Vec<WriterKey> {
    if name == LOG { &mut ring.log } else { &mut ring.writers }
}
