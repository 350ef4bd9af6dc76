//! A process that is an MCP server: messages in lines on its standard input and output.
//!
//! It gets the environment that the configuration gives it and nothing of ours. What it writes to
//! standard error, and lines that are no messages, are noted. It is ended by closing its input; one
//! that does not end then is killed with the processes that it has started.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::session::Session;
use super::starts::Starts;
use super::{Ended, unused};
use crate::upstream::notes::Said;
use crate::upstream::reach::Command;

/// How long a process has to end after its input was closed.
const POLITE: Duration = Duration::from_secs(2);
/// How long the last words of a process that has ended are waited for.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long a process may not read what is written to it.
const STUCK: Duration = Duration::from_secs(30);
/// How much is read at a time.
const READ_BYTES: usize = 16 << 10;
/// How much of standard error becomes one note, and after how much silence less does.
const MAX_NOTE: usize = 64 << 10;
const NOTE_AFTER: Duration = Duration::from_millis(500);

/// Starts the program.
pub(super) fn start(command: &Command) -> std::io::Result<Child> {
    let mut child = tokio::process::Command::new(&command.program);
    child.args(&command.args).env_clear();
    child.envs(command.env.iter().map(|(name, value)| (name, &value.0)));
    if let Some(cwd) = &command.cwd {
        child.current_dir(cwd);
    }
    child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    child.process_group(0).kill_on_drop(true).spawn()
}

/// Carries messages until the process ends or is no longer needed.
pub(super) async fn run(
    mut child: Child,
    session: &std::sync::Arc<Session>,
    lines: mpsc::Receiver<Bytes>,
    (max_message_bytes, idle): (usize, Duration),
    starts: &Starts,
) -> Ended {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
        return Ended::ByItself;
    };
    let mut writing = tokio::spawn(write(stdin, lines));
    let for_reading = std::sync::Arc::clone(session);
    let mut reading = tokio::spawn(read(stdout, for_reading, max_message_bytes));
    let for_errors = std::sync::Arc::clone(session);
    let mut errors = tokio::spawn(overhear(stderr, for_errors));
    let ended = tokio::select! {
        _ = child.wait() => Ended::ByItself,
        _ = &mut reading => Ended::ByItself,
        _ = &mut writing => Ended::ByItself,
        () = session.stop.cancelled() => Ended::AsWished,
        () = unused(session, idle, starts) => Ended::AsWished,
    };
    writing.abort();
    let status = end(&mut child, ended).await;
    for task in [&mut reading, &mut errors] {
        if !task.is_finished() && timeout(LAST_WORDS, &mut *task).await.is_err() {
            task.abort();
        }
    }
    if ended == Ended::ByItself {
        let how = status.map_or_else(|| "killed".to_owned(), |status| status.to_string());
        session.notes.take(Said::Exit, Bytes::from(how));
    }
    ended
}

/// Waits for the end of the process, and brings it about.
async fn end(child: &mut Child, ended: Ended) -> Option<ExitStatus> {
    let patience = if ended == Ended::AsWished { POLITE } else { POLITE / 4 };
    if let Ok(Ok(status)) = timeout(patience, child.wait()).await {
        return Some(status);
    }
    kill_group(child).await;
    drop(child.start_kill());
    timeout(POLITE, child.wait()).await.ok().and_then(Result::ok)
}

/// Kills a process with those that it has started. Where the system has no `kill`, only the
/// process itself is killed, by our caller.
async fn kill_group(child: &Child) {
    let Some(id) = child.id() else { return };
    let mut kill = tokio::process::Command::new("kill");
    kill.args(["-KILL", "--", &format!("-{id}")]);
    kill.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if let Ok(mut kill) = kill.spawn() {
        drop(timeout(POLITE, kill.wait()).await);
    }
}

/// Writes each message in a line.
async fn write(mut stdin: ChildStdin, mut lines: mpsc::Receiver<Bytes>) {
    while let Some(line) = lines.recv().await {
        let writing = async {
            stdin.write_all(&line).await?;
            stdin.write_all(b"\n").await?;
            stdin.flush().await
        };
        if !matches!(timeout(STUCK, writing).await, Ok(Ok(()))) {
            return;
        }
    }
}

/// Reads lines until there are no more, or one is too long.
async fn read(mut stdout: ChildStdout, session: std::sync::Arc<Session>, limit: usize) {
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    let mut scanned = 0;
    loop {
        while let Some(at) = memchr::memchr(b'\n', &buffer[scanned..]) {
            let line = buffer.split_to(scanned + at + 1).freeze();
            scanned = 0;
            let end = line.len() - if line.ends_with(b"\r\n") { 2 } else { 1 };
            hear(&session, line.slice(..end)).await;
        }
        scanned = buffer.len();
        if buffer.len() > limit {
            session.notes.take(Said::Garbage, buffer.split_to(MAX_NOTE.min(limit)).freeze());
            return;
        }
        buffer.reserve(READ_BYTES);
        match stdout.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    if !buffer.is_empty() {
        hear(&session, buffer.freeze()).await;
    }
}

/// A line with a carriage return inside cannot be told as an event without changing it.
async fn hear(session: &Session, line: Bytes) {
    if memchr::memchr(b'\r', &line).is_some() {
        return session.notes.take(Said::Garbage, line);
    }
    session.hear(line).await;
}

/// Notes what is written to standard error.
async fn overhear(mut stderr: ChildStderr, session: std::sync::Arc<Session>) {
    let mut heard = BytesMut::new();
    loop {
        heard.reserve(READ_BYTES);
        let silence = if heard.is_empty() { Duration::MAX } else { NOTE_AFTER };
        let read = timeout(silence, stderr.read_buf(&mut heard)).await;
        let goes_on = matches!(read, Ok(Ok(1..)));
        if !heard.is_empty() && (!goes_on || heard.len() >= MAX_NOTE) {
            session.notes.take(Said::Stderr, heard.split().freeze());
        }
        if matches!(read, Ok(Ok(0) | Err(_))) {
            return;
        }
    }
}
