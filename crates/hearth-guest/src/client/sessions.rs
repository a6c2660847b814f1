//! Exec sessions: started, listed, read, written to, signalled, waited for.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt};
use http::Method;

use super::exec::{protocol, stdin_frames};
use super::transfer::{Download, Sending, Upload};
use super::{AgentClient, AgentError, accepted, with_query};
use crate::exec_session::{
    Dropped, ProcessInfo, ProcessList, SessionAttach, SessionInfo, SessionList, SessionSignal, SessionSpec,
    SessionStart, Signalled,
};
use crate::frames::{self, FrameDecoder, FrameError};
use crate::{FrameKind, TerminalSize, paths};

/// The most that is read of a list of sessions or processes.
const LONGEST_LIST: usize = 16 * 1024 * 1024;

/// One thing that comes of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionEvent {
    /// What it is: the first event, and the last one, after which nothing follows.
    Info(Box<SessionInfo>),
    /// It wrote this to its standard output, or its terminal shows it.
    Stdout(Bytes),
    /// It wrote this to its standard error.
    Stderr(Bytes),
    /// So many bytes of its output are not kept any more.
    Dropped(u64),
}

/// What a client of a session sends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionInput {
    /// Input.
    Bytes(Bytes),
    /// The end of the input, for everybody.
    End,
    /// A new size of the terminal.
    Resize(TerminalSize),
}

/// The output of a session. Dropping it leaves the session as it is.
#[derive(Debug)]
pub struct SessionStream {
    body: Download,
    decoder: FrameDecoder,
    /// Held for its drop: it cancels what is still sent.
    _input: Sending,
    begun: bool,
    over: bool,
}

impl AgentClient {
    /// Starts a session. An agent before protocol 10 refuses all of this with 404 and no code.
    pub async fn start_session(&self, spec: &SessionSpec) -> Result<SessionStart, AgentError> {
        let reply = self.post(paths::SESSIONS, spec).await?;
        list(reply).await
    }

    /// All sessions, the oldest first.
    pub async fn sessions(&self) -> Result<Vec<SessionInfo>, AgentError> {
        let reply = self.call(Method::GET, paths::SESSIONS, None).await?;
        let found: SessionList = list(reply).await?;
        Ok(found.items)
    }

    /// One session, by id, process id or tag.
    pub async fn session(&self, session: &str) -> Result<SessionInfo, AgentError> {
        let target = with_query(paths::SESSION_INFO, &[(paths::SESSION, session)]);
        list(self.call(Method::GET, &target, None).await?).await
    }

    /// Removes one that has ended.
    pub async fn remove_session(&self, session: &str) -> Result<(), AgentError> {
        let target = with_query(paths::SESSION_INFO, &[(paths::SESSION, session)]);
        self.call(Method::DELETE, &target, None).await.map(drop)
    }

    /// Reads a session's output, and sends it input. Neither end of the input, nor of the stream, ends the session.
    pub async fn attach_session(
        &self,
        attach: &SessionAttach,
        input: impl Stream<Item = io::Result<SessionInput>> + Send + 'static,
    ) -> Result<SessionStream, AgentError> {
        let spec = frames::encode_json(FrameKind::Spec, attach).map_err(protocol)?;
        let input = input.flat_map(|input| stream::iter(to_frames(input)));
        let body = Upload::from_stream(stream::iter([Ok(spec)]).chain(input));
        let (reply, sending) = self.start(Method::POST, paths::SESSION_ATTACH, Some(body)).await?;
        let reply = accepted(reply.await?).await?;
        Ok(SessionStream {
            body: Download::new(reply.into_body()),
            decoder: FrameDecoder::default(),
            _input: sending,
            begun: false,
            over: false,
        })
    }

    /// Writes to a session's standard input; with `close` it ends after that.
    pub async fn write_stdin(&self, session: &str, input: impl Into<Upload>, close: bool) -> Result<(), AgentError> {
        let close = if close { "true" } else { "false" };
        let target = with_query(
            paths::SESSION_STDIN,
            &[(paths::SESSION, session), (paths::CLOSE, close)],
        );
        self.call(Method::POST, &target, Some(input.into())).await.map(drop)
    }

    /// Changes the size of a session's terminal.
    pub async fn resize_session(&self, session: &str, size: TerminalSize) -> Result<(), AgentError> {
        let target = with_query(paths::SESSION_RESIZE, &[(paths::SESSION, session)]);
        self.post(&target, &size).await.map(drop)
    }

    /// Sends a signal to a session's first process, or to all of its processes. Says how many got it.
    pub async fn signal_session(&self, session: &str, signal: SessionSignal) -> Result<u32, AgentError> {
        let target = with_query(paths::SESSION_SIGNAL, &[(paths::SESSION, session)]);
        let reply = self.post(&target, &signal).await?;
        let sent: Signalled = list(reply).await?;
        Ok(sent.processes)
    }

    /// Waits until a session has ended, or for this long. In the second case it has no end.
    pub async fn wait_session(&self, session: &str, limit: Duration) -> Result<SessionInfo, AgentError> {
        let limit = limit.as_millis().to_string();
        let target = with_query(
            paths::SESSION_WAIT,
            &[(paths::SESSION, session), (paths::LIMIT, &limit)],
        );
        list(self.call(Method::GET, &target, None).await?).await
    }

    /// All processes of the VM.
    pub async fn processes(&self) -> Result<Vec<ProcessInfo>, AgentError> {
        let reply = self.call(Method::GET, paths::PROCESSES, None).await?;
        let found: ProcessList = list(reply).await?;
        Ok(found.items)
    }
}

async fn list<T: serde::de::DeserializeOwned>(reply: http::Response<h2::RecvStream>) -> Result<T, AgentError> {
    let body = Download::new(reply.into_body()).collect(LONGEST_LIST).await?;
    serde_json::from_slice(&body).map_err(|error| AgentError::Protocol(error.to_string()))
}

fn to_frames(input: io::Result<SessionInput>) -> Vec<io::Result<Bytes>> {
    match input {
        Ok(SessionInput::Bytes(bytes)) => stdin_frames(bytes),
        Ok(SessionInput::End) => vec![Ok(frames::encode(FrameKind::StdinEnd, &[]))],
        Ok(SessionInput::Resize(size)) => {
            vec![frames::encode_json(FrameKind::Resize, &size).map_err(io::Error::other)]
        }
        Err(error) => vec![Err(error)],
    }
}

impl SessionStream {
    fn next_event(&mut self) -> Result<Option<SessionEvent>, FrameError> {
        let Some((kind, payload)) = self.decoder.next_frame()? else {
            return Ok(None);
        };
        Ok(Some(match kind {
            FrameKind::Session => SessionEvent::Info(frames::decode_json(&payload)?),
            FrameKind::Stdout => SessionEvent::Stdout(payload),
            FrameKind::Stderr => SessionEvent::Stderr(payload),
            FrameKind::Dropped => SessionEvent::Dropped(frames::decode_json::<Dropped>(&payload)?.bytes),
            other => return Err(FrameError::Misplaced(other)),
        }))
    }
}

impl Stream for SessionStream {
    type Item = Result<SessionEvent, AgentError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.over {
            return Poll::Ready(None);
        }
        loop {
            match self.next_event() {
                Ok(Some(event)) => {
                    if matches!(event, SessionEvent::Info(_)) {
                        self.over = self.begun;
                        self.begun = true;
                    }
                    return Poll::Ready(Some(Ok(event)));
                }
                Ok(None) => {}
                Err(error) => {
                    self.over = true;
                    return Poll::Ready(Some(Err(protocol(error))));
                }
            }
            match std::task::ready!(self.body.poll_next_unpin(cx)) {
                Some(Ok(chunk)) => self.decoder.feed(&chunk),
                Some(Err(error)) => {
                    self.over = true;
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    self.over = true;
                    let error = "the output of a session broke off";
                    return Poll::Ready(Some(Err(AgentError::Protocol(error.into()))));
                }
            }
        }
    }
}
