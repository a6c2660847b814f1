//! Running commands: the stream of what they print, and how it ends.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use futures::stream::{self, StreamExt};
use h2::RecvStream;
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};

use super::AgentError;
use super::transfer::{Download, Sending, Upload};
use crate::frames::{self, FrameDecoder, FrameError};
use crate::{ExecEnd, ExecSpec, FrameKind, TerminalSize, TerminalSpec};

/// Longest chunk of standard input in one frame.
const STDIN_CHUNK: usize = 32 * 1024;
/// When a command's time is up, its agent has this long to say how it ended: it lets the command end by itself for two seconds, and
/// kills what is left then.
const BACKSTOP: Duration = Duration::from_secs(4);

/// One thing that happened to a running command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// It wrote this to its standard output.
    Stdout(Bytes),
    /// It wrote this to its standard error.
    Stderr(Bytes),
    /// It is over; nothing follows.
    End(ExecEnd),
}

/// What a command printed, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// The beginning of its standard output.
    pub stdout: Vec<u8>,
    /// The beginning of its standard error.
    pub stderr: Vec<u8>,
    /// How it ended.
    pub end: ExecEnd,
    /// True when it printed more than is kept here.
    pub truncated: bool,
}

/// A running command. Dropping it before the end ends every process of the command, unless it is detached.
#[derive(Debug)]
pub struct ExecStream {
    body: Download,
    decoder: FrameDecoder,
    /// Held for its drop: it cancels the standard input.
    _stdin: Sending,
    limit: Option<Limit>,
    over: bool,
}

/// A command's time, seen from here. The agent ends a command whose time is up; an agent that cannot, because it gets no processor or
/// hangs, must not keep its caller waiting.
#[derive(Debug)]
pub(super) struct Limit {
    limit: Duration,
    /// When it is up.
    end: Instant,
    /// Time that was spent on waiting for the agent after that. What a slow reader takes does not count.
    late: Duration,
    /// Since when the agent is waited for.
    waiting: Option<Instant>,
    alarm: Pin<Box<Sleep>>,
}

impl Limit {
    /// Of a command that is given to the agent now; none when it has no limit that ever comes.
    pub(super) fn of(timeout_ms: Option<u64>) -> Option<Self> {
        let limit = Duration::from_millis(timeout_ms?);
        let end = Instant::now().checked_add(limit)?;
        Some(Self {
            limit,
            end,
            late: Duration::ZERO,
            waiting: None,
            alarm: Box::pin(sleep_until(end + BACKSTOP)),
        })
    }

    /// Waits for what the agent says first.
    pub(super) async fn first<T>(
        limit: Option<&Self>,
        said: impl Future<Output = Result<T, AgentError>>,
    ) -> Result<T, AgentError> {
        let Some(limit) = limit else { return said.await };
        let in_time = timeout_at(limit.end + BACKSTOP, said).await;
        in_time.unwrap_or_else(|_| Err(limit.overdue()))
    }

    fn overdue(&self) -> AgentError {
        AgentError::Overdue { limit: self.limit }
    }

    /// The agent says nothing now. Ready when it was waited for long enough.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<AgentError> {
        let since = *self.waiting.get_or_insert_with(|| Instant::now().max(self.end));
        let due = since + BACKSTOP.saturating_sub(self.late);
        if self.alarm.deadline() != due {
            self.alarm.as_mut().reset(due);
        }
        self.alarm.as_mut().poll(cx).map(|()| self.overdue())
    }

    /// The agent says something.
    fn heard(&mut self) {
        if let Some(since) = self.waiting.take() {
            self.late += Instant::now().saturating_duration_since(since);
        }
    }
}

/// Standard input as frames, none of them longer than [`STDIN_CHUNK`].
pub(super) fn stdin_frames(mut input: Bytes) -> Vec<io::Result<Bytes>> {
    let mut frames = Vec::with_capacity(input.len().div_ceil(STDIN_CHUNK));
    while !input.is_empty() {
        let part = input.split_to(input.len().min(STDIN_CHUNK));
        frames.push(Ok(frames::encode(FrameKind::Stdin, &part)));
    }
    frames
}

/// The request's body: the specification, the input, and its end.
pub(super) fn request_body(spec: &ExecSpec, stdin: Upload) -> Result<Upload, AgentError> {
    let spec = frames::encode_json(FrameKind::Spec, spec).map_err(protocol)?;
    let input = stdin.into_stream().flat_map(|chunk| {
        stream::iter(match chunk {
            Ok(chunk) => stdin_frames(chunk),
            Err(error) => vec![Err(error)],
        })
    });
    let end = frames::encode(FrameKind::StdinEnd, &[]);
    let whole = stream::iter([Ok(spec)]).chain(input).chain(stream::iter([Ok(end)]));
    Ok(Upload::from_stream(whole))
}

/// What a person does at a terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TerminalInput {
    /// Types.
    Bytes(Bytes),
    /// Makes it larger or smaller.
    Resize(TerminalSize),
}

/// The request's body: the specification and the input. Its end says nothing: a terminal ends with its command.
pub(super) fn terminal_body(
    spec: &TerminalSpec,
    input: impl Stream<Item = io::Result<TerminalInput>> + Send + 'static,
) -> Result<Upload, AgentError> {
    let spec = frames::encode_json(FrameKind::Spec, spec).map_err(protocol)?;
    let input = input.map(|input| match input? {
        TerminalInput::Bytes(bytes) => Ok(frames::encode(FrameKind::Stdin, &bytes)),
        TerminalInput::Resize(size) => frames::encode_json(FrameKind::Resize, &size).map_err(io::Error::other),
    });
    Ok(Upload::from_stream(stream::iter([Ok(spec)]).chain(input)))
}

pub(super) fn protocol(error: FrameError) -> AgentError {
    AgentError::Protocol(error.to_string())
}

impl ExecStream {
    pub(super) fn new(body: RecvStream, stdin: Sending, limit: Option<Limit>) -> Self {
        Self {
            body: Download::new(body),
            decoder: FrameDecoder::default(),
            _stdin: stdin,
            limit,
            over: false,
        }
    }

    /// Waits for the end and keeps the first `max_bytes` of each output.
    pub async fn collect(mut self, max_bytes: usize) -> Result<ExecOutput, AgentError> {
        let (mut stdout, mut stderr, mut truncated) = (Vec::new(), Vec::new(), false);
        while let Some(event) = self.next().await {
            let (kept, chunk) = match event? {
                ExecEvent::Stdout(chunk) => (&mut stdout, chunk),
                ExecEvent::Stderr(chunk) => (&mut stderr, chunk),
                ExecEvent::End(end) => {
                    return Ok(ExecOutput {
                        stdout,
                        stderr,
                        end,
                        truncated,
                    });
                }
            };
            let room = max_bytes.saturating_sub(kept.len()).min(chunk.len());
            truncated |= room < chunk.len();
            kept.extend_from_slice(&chunk[..room]);
        }
        Err(AgentError::Protocol(
            "the output ended without saying how the command did".into(),
        ))
    }

    fn next_event(&mut self) -> Result<Option<ExecEvent>, FrameError> {
        let Some((kind, payload)) = self.decoder.next_frame()? else {
            return Ok(None);
        };
        Ok(Some(match kind {
            FrameKind::Stdout => ExecEvent::Stdout(payload),
            FrameKind::Stderr => ExecEvent::Stderr(payload),
            FrameKind::End => ExecEvent::End(frames::decode_json(&payload)?),
            other => return Err(FrameError::Misplaced(other)),
        }))
    }
}

impl Stream for ExecStream {
    type Item = Result<ExecEvent, AgentError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.over {
            return Poll::Ready(None);
        }
        loop {
            match self.next_event() {
                Ok(Some(event)) => {
                    self.over = matches!(event, ExecEvent::End(_));
                    return Poll::Ready(Some(Ok(event)));
                }
                Ok(None) => {}
                Err(error) => {
                    self.over = true;
                    return Poll::Ready(Some(Err(protocol(error))));
                }
            }
            let said = match self.body.poll_next_unpin(cx) {
                Poll::Ready(said) => said,
                Poll::Pending => {
                    let Some(limit) = &mut self.limit else {
                        return Poll::Pending;
                    };
                    let overdue = std::task::ready!(limit.poll_overdue(cx));
                    self.over = true;
                    return Poll::Ready(Some(Err(overdue)));
                }
            };
            if let Some(limit) = &mut self.limit {
                limit.heard();
            }
            match said {
                Some(Ok(chunk)) => self.decoder.feed(&chunk),
                Some(Err(error)) => {
                    self.over = true;
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    self.over = true;
                    let error = "the output ended without saying how the command did";
                    return Poll::Ready(Some(Err(AgentError::Protocol(error.into()))));
                }
            }
        }
    }
}
