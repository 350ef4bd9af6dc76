//! The server that the conformance suite wants to find, as a process, to be asked by hand:
//! `docs/conformance.md` says how.

use clap::Parser;
use custody_tests::conformance::Fixture;

#[derive(Parser)]
#[command(name = "conformance", about = "An MCP server for the official conformance suite")]
struct Arguments {
    /// Port on loopback; 0 for one of the system's choice.
    #[arg(long, default_value_t = 0)]
    port: u16,
}

#[expect(clippy::print_stdout, reason = "whoever starts it wants to know where it listens")]
#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let fixture = Fixture::start(Arguments::parse().port).await?;
    println!("{}", fixture.url());
    std::future::pending::<()>().await;
    Ok(())
}
