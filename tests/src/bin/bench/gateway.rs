//! Our proxy alone, as a process of its own, with the audit on, unsynced or off.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use custody_journal::{Writer, WriterOptions};
use custody_proxy::Watched;
use custody_schemas::seal::key::Signer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What happens to what is recorded.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Audit {
    /// As in production: every append waits for the disk.
    Local,
    /// Written, but nobody waits for the disk.
    Unsynced,
    /// Thrown away before it is hashed or written: no product setting, only this benchmark's.
    Off,
}

/// How it runs.
#[derive(clap::Args)]
pub struct Options {
    /// Port on loopback.
    #[arg(long)]
    port: u16,
    /// Port of the upstream on loopback.
    #[arg(long)]
    upstream: u16,
    /// What happens to what is recorded.
    #[arg(long, value_enum)]
    audit: Audit,
    /// Folder of the journal.
    #[arg(long)]
    data: PathBuf,
    /// Whether the server is configured as one with protected health information.
    #[arg(long)]
    phi: bool,
}

/// Serves until it is killed.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let signer = Signer::from_seed("bench.example/bench", &rand::random())?.0;
    let journal = WriterOptions {
        origin: "bench.example".to_owned(),
        sync: matches!(options.audit, Audit::Local),
        discard: matches!(options.audit, Audit::Off),
        ..WriterOptions::new(options.data, "bench")
    };
    let (writer, _) = Writer::open(journal, signer)?;
    let url = format!("http://127.0.0.1:{}/mcp", options.upstream).parse()?;
    let mut server = custody_proxy::Server::new("stub", url);
    server.phi = options.phi;
    let config = custody_proxy::Config {
        servers: vec![server],
        audit_wait: Duration::from_secs(10),
        ..custody_proxy::Config::default()
    };
    let listener = TcpListener::bind(("127.0.0.1", options.port)).await?;
    custody_proxy::run(listener, config, writer, Watched::default(), CancellationToken::new())
        .await?;
    Ok(())
}
