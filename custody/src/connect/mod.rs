//! `custody connect`: an MCP server on standard input and output, for clients that only speak that;
//! what they say goes to a server over HTTP, so that it is audited like anybody's calls.
//!
//! Messages pass as they are, one in a line. Both eras are spoken: a legacy session is opened anew
//! when the server has lost it, and its stream is kept open; from 2026-07-28 on headers repeat what
//! the body says, and a cancelled call is left. A message is sent once more only if it was
//! certainly not delivered. Every request gets an answer, be it an error of ours.

mod bridge;
mod http;
mod message;
mod stream;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use bridge::Bridge;
use message::{Message, Shape};

/// How many calls may be in flight.
const MAX_CALLS: usize = 256;
/// How many lines wait to be written.
const MAX_LINES: usize = 64;
/// How long calls in flight may go on when the client has closed our input.
const DRAIN: Duration = Duration::from_secs(30);
/// How much is read at a time.
const READ_BYTES: usize = 16 << 10;

/// `custody connect`
#[derive(clap::Args, Debug)]
pub struct Connect {
    /// Where the server is, for example http://127.0.0.1:7400/servers/ehr/mcp
    #[arg(value_parser = http::address)]
    url: ::http::Uri,
    /// The environment variable that holds the agent's key.
    #[arg(long, value_name = "NAME", default_value = "CUSTODY_KEY")]
    key_env: String,
    /// PEM file with the only certificates to trust; without it those that this machine trusts.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The longest message in either direction, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 16 << 20)]
    max_message_bytes: usize,
}

/// Carries messages until the client closes our input.
pub async fn run(options: Connect) -> anyhow::Result<ExitCode> {
    let key = std::env::var(&options.key_env).ok().filter(|key| !key.is_empty());
    let http = http::Http::new(options.url, key.as_deref(), options.ca)?;
    let (out, lines) = mpsc::channel(MAX_LINES);
    let writing = tokio::spawn(write(lines));
    let bridge = Arc::new(Bridge::new(http, out, options.max_message_bytes));
    let read = carry(&bridge, options.max_message_bytes).await;
    bridge.close().await;
    drop(bridge);
    writing.await.context("standard output")??;
    read.map(|()| ExitCode::SUCCESS)
}

/// Carries messages in both directions.
async fn carry(bridge: &Arc<Bridge>, max_message_bytes: usize) -> anyhow::Result<()> {
    let mut input = Lines { from: tokio::io::stdin(), buffer: BytesMut::new(), max_message_bytes };
    let mut calls = JoinSet::new();
    let read = loop {
        let line = tokio::select! {
            line = input.next() => line,
            () = bridge.gone() => break Ok(()),
        };
        let line = match line {
            Ok(Some(line)) => line,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        let Some(message) = Message::read(line) else {
            bridge.refuse_unread().await;
            continue;
        };
        while calls.len() >= MAX_CALLS {
            calls.join_next().await;
        }
        while calls.try_join_next().is_some() {}
        match message.shape {
            // what follows needs the session that it opens
            Shape::Request if message.is_initialize() => bridge.call(message, None).await,
            Shape::Request => {
                let (on_its_way, taken) = tokio::sync::oneshot::channel();
                let id = message.id.clone();
                let at_work = Arc::clone(bridge);
                let call =
                    calls.spawn(async move { at_work.call(message, Some(on_its_way)).await });
                bridge.note_call(id, call);
                // the order of messages is the client's
                drop(taken.await);
            }
            Shape::Other => bridge.tell(message).await,
        }
    };
    let drained = async { while calls.join_next().await.is_some() {} };
    if timeout(DRAIN, drained).await.is_err() {
        calls.shutdown().await;
    }
    read
}

/// The lines of the client.
struct Lines {
    from: tokio::io::Stdin,
    buffer: BytesMut,
    max_message_bytes: usize,
}

impl Lines {
    /// The next line that is not empty.
    async fn next(&mut self) -> anyhow::Result<Option<Bytes>> {
        let mut scanned = 0;
        loop {
            let end = self.buffer[scanned..].iter().position(|&b| b == b'\n');
            if let Some(at) = end {
                let line = self.buffer.split_to(scanned + at + 1).freeze();
                scanned = 0;
                if let Some(line) = trimmed(&line) {
                    return Ok(Some(line));
                }
                continue;
            }
            scanned = self.buffer.len();
            if scanned > self.max_message_bytes {
                bail!("a message is longer than --max-message-bytes {}", self.max_message_bytes);
            }
            self.buffer.reserve(READ_BYTES);
            if self.from.read_buf(&mut self.buffer).await? == 0 {
                return Ok(trimmed(&self.buffer.split().freeze()));
            }
        }
    }
}

fn trimmed(line: &Bytes) -> Option<Bytes> {
    let text = line.trim_ascii();
    (!text.is_empty()).then(|| line.slice_ref(text))
}

/// Writes messages, each in a line.
async fn write(mut lines: mpsc::Receiver<Bytes>) -> std::io::Result<()> {
    let mut out = tokio::io::stdout();
    while let Some(line) = lines.recv().await {
        out.write_all(&in_one_line(line)).await?;
        out.write_all(b"\n").await?;
        out.flush().await?;
    }
    Ok(())
}

/// Line breaks between tokens become spaces; inside of tokens there are none.
fn in_one_line(message: Bytes) -> Bytes {
    if !message.iter().any(|&b| b == b'\n' || b == b'\r') {
        return message;
    }
    let space = |b: &u8| if matches!(*b, b'\n' | b'\r') { b' ' } else { *b };
    message.iter().map(space).collect()
}

#[cfg(test)]
mod one_line {
    use super::*;

    #[test]
    fn a_message_is_told_in_one_line_of_the_same_length() {
        let message = Bytes::from_static(b"{\r\n \"a\": 1\n}");
        assert_eq!(&in_one_line(message)[..], b"{   \"a\": 1 }");
    }
}
