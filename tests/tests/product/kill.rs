//! SIGKILL at any moment: what was answered is in SQL exactly once, what was cut off is unknown.

use custody_tests::havoc;

#[tokio::test(flavor = "multi_thread")]
async fn answered_calls_are_in_sql_exactly_once_after_every_kill() {
    // `bench storm --alone` kills it a thousand times.
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    println!("{}", havoc::alone::run(seed, 6).await.unwrap());
}
