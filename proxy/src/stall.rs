//! A connection that is broken off when its other end takes nothing for too long.
//!
//! A client that asks and does not read would otherwise keep its answer in memory, its call open
//! and its place in the journal taken for as long as it likes. Silence of ours does not count: only
//! time in which there was something to write and nothing could be.

use std::future::Future;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// A connection with a limit on how long it may take nothing.
#[derive(Debug)]
pub(crate) struct Stall<S> {
    stream: S,
    limit: Duration,
    /// Runs while nothing can be written.
    over: Option<Pin<Box<Sleep>>>,
}

impl<S> Stall<S> {
    /// `stream`, broken off when it takes nothing for `limit`.
    pub(crate) fn new(stream: S, limit: Duration) -> Self {
        Self { stream, limit, over: None }
    }

    /// What became of a write.
    fn watch<T>(&mut self, context: &mut Context<'_>, did: Poll<Result<T>>) -> Poll<Result<T>> {
        if did.is_ready() {
            self.over = None;
            return did;
        }
        let limit = self.limit;
        let over = self.over.get_or_insert_with(|| Box::pin(sleep(limit)));
        match over.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(Error::from(ErrorKind::TimedOut))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stall<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stall<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize>> {
        let did = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, did)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let did = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.watch(context, did)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        let did = Pin::new(&mut self.stream).poll_flush(context);
        self.watch(context, did)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        let did = Pin::new(&mut self.stream).poll_shutdown(context);
        self.watch(context, did)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_write_that_nobody_takes_fails_after_the_limit_and_one_that_is_taken_does_not() {
        let limit = Duration::from_millis(200);
        let (ours, mut theirs) = tokio::io::duplex(8);
        let mut ours = Stall::new(ours, limit);
        ours.write_all(b"12345678").await.unwrap();
        let (writing, mut taken) = (ours.write_all(b"abcdefgh"), [0; 8]);
        let (wrote, read) = tokio::join!(writing, theirs.read_exact(&mut taken));
        assert!(wrote.is_ok() && read.is_ok());
        let began = std::time::Instant::now();
        let stalled = ours.write_all(b"!").await.unwrap_err();
        assert_eq!(stalled.kind(), ErrorKind::TimedOut);
        assert!(began.elapsed() >= limit);
        drop(theirs);
    }
}
