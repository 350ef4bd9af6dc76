//! A TCP proxy before a broker. A broker names its own address to its clients, so it must be told
//! ours when it starts (`kafka start --advertise`).

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What happens to every connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// Bytes pass.
    Through,
    /// Bytes pass, each piece so much later.
    Late(Duration),
    /// Nothing passes, and nobody is told: a black hole.
    Silent,
    /// What clients say arrives, what they are answered is lost.
    Deaf,
    /// Connections break, and new ones are closed at once.
    Cut,
}

/// A proxy. It ends with the value.
pub struct BrokerProxy {
    /// Where clients connect.
    pub port: u16,
    line: watch::Sender<Line>,
    upstream: watch::Sender<Option<SocketAddr>>,
    task: JoinHandle<()>,
}

impl Drop for BrokerProxy {
    fn drop(&mut self) {
        self.task.abort();
        self.line.send_replace(Line::Cut);
    }
}

impl BrokerProxy {
    /// A proxy before nobody yet: its port has to be known before the broker starts.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let (line, upstream) = (watch::Sender::new(Line::Through), watch::Sender::new(None));
        let task = tokio::spawn(accept(listener, line.subscribe(), upstream.subscribe()));
        Ok(Self { port, line, upstream, task })
    }

    /// Says where the broker listens, `host:port`.
    ///
    /// # Errors
    /// When that is no address.
    pub fn before(&self, address: &str) -> anyhow::Result<()> {
        self.upstream.send_replace(Some(address.parse().context("the broker's address")?));
        Ok(())
    }

    /// Lets this happen from now on.
    pub fn set(&self, line: Line) {
        self.line.send_replace(line);
    }
}

async fn accept(
    listener: TcpListener,
    line: watch::Receiver<Line>,
    upstream: watch::Receiver<Option<SocketAddr>>,
) {
    while let Ok((client, _)) = listener.accept().await {
        let Some(address) = *upstream.borrow() else { continue };
        tokio::spawn(carry(client, address, line.clone()));
    }
}

/// Carries one connection until either side ends it, or it must break.
async fn carry(client: TcpStream, address: SocketAddr, mut line: watch::Receiver<Line>) {
    if *line.borrow() == Line::Cut {
        return;
    }
    let Ok(broker) = TcpStream::connect(address).await else { return };
    // A peer that does not wait for more is no fault of a proxy's.
    drop((client.set_nodelay(true), broker.set_nodelay(true)));
    let (from_client, to_client) = client.into_split();
    let (from_broker, to_broker) = broker.into_split();
    let (asking, answering) = (line.clone(), line.clone());
    tokio::select! {
        () = pass(from_client, to_broker, asking, false) => {}
        () = pass(from_broker, to_client, answering, true) => {}
        _ = line.wait_for(|line| *line == Line::Cut) => {}
    }
}

/// Passes one direction. Whoever has lost an answer cannot go on after it: the connection breaks
/// when answers would pass again.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut line: watch::Receiver<Line>,
    answers: bool,
) {
    let mut piece = vec![0; 64 * 1024];
    let mut lost = false;
    loop {
        let read = tokio::select! {
            read = from.read(&mut piece) => read,
            _ = line.wait_for(|line| lost && *line != Line::Deaf) => return,
        };
        let Ok(length @ 1..) = read else { return };
        let now = *line.borrow_and_update();
        match now {
            Line::Deaf if answers => {
                lost = true;
                continue;
            }
            Line::Late(time) => tokio::time::sleep(time).await,
            Line::Silent => {
                if line.wait_for(|line| *line != Line::Silent).await.is_err() {
                    return;
                }
            }
            Line::Through | Line::Deaf | Line::Cut => {}
        }
        if to.write_all(&piece[..length]).await.is_err() {
            return;
        }
    }
}
