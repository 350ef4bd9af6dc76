//! System calls that fail or are a process's last: nothing acknowledged is lost, the next run
//! starts. `tests/faults/syscalls` tries every case, this test a sample. And mutants of all kinds:
//! `tests/faults/mutants` sees that each is caught, this test that each can still be made.

use std::path::{Path, PathBuf};
use std::process::Command;

/// An example's executable, beside this test's own or in the folder of examples.
fn example(name: &str) -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let folders = this.ancestors().skip(1).take(2);
    let candidates: Vec<_> =
        folders.flat_map(|f| [f.join(name), f.join("examples").join(name)]).collect();
    let found = candidates.iter().find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("build all targets first: none of {candidates:?}")).clone()
}

fn survives(program: &str, every: &str) {
    let harness = Path::new(env!("CARGO_MANIFEST_DIR")).join("faults/syscalls");
    let run = Command::new(harness).args(["--every", every]).arg(example(program)).output();
    let run = run.expect("python3 runs it");
    let said = String::from_utf8_lossy(&run.stdout);
    let problem = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{said}{problem}");
    let faults = said.lines().last().and_then(|line| line.split_once(" faults, 0 failed"));
    let faults: u32 = faults.and_then(|(number, _)| number.parse().ok()).expect("a number");
    assert!(faults >= 20, "too few to say anything: {said}");
}

#[test]
fn a_spool_survives_every_kind_of_system_call_that_fails_or_is_the_last() {
    survives("spool_work", "31");
}

#[test]
fn every_mutant_can_still_be_applied() {
    let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("faults/mutants");
    let run = Command::new(table).arg("--check").output().expect("python3 runs it");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout));
}
