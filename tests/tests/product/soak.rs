//! Sessions, calls and descriptors go when their clients go; `bench soak` is the long version.

use std::process::Command;

#[test]
fn nothing_stays_behind_when_sessions_end_calls_are_cancelled_and_clients_leave() {
    let folder = tempfile::tempdir().unwrap();
    let soak = ["soak", "--sessions", "150", "--agents", "8", "--rate", "10", "--seconds", "6"];
    let mut bench = Command::new(env!("CARGO_BIN_EXE_bench"));
    let done = bench.args(soak).current_dir(folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    println!("{said}");
    assert!(done.status.success(), "{said}\n{}", String::from_utf8_lossy(&done.stderr));
    assert!(said.contains("KiB for an idle session"), "{said}");
}
