//! Server-sent events as typed streams. A stream that stops before its last event ends in an error: silence is no success.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use eventsource_stream::{Event, EventStream, EventStreamError, Eventsource as _};
use futures::stream::{BoxStream, Stream, StreamExt as _};
use reqwest::Response;

use super::call::request_id;
use super::error::{self, ClientError};
use crate::event::{Event as Happened, EventsPosition, EventsReset};
use crate::exec::{ExecExit, UNFINISHED_HEADER};
use crate::file::{FileChange, FileChangeKind};
use crate::instance::FollowEvent;

/// Names of the events of `follow` that this client knows; a newer server may send more.
const FOLLOW_EVENTS: [&str; 5] = ["message", "stepStarted", "output", "stepEnded", "ended"];

/// One event of a running command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// Bytes it wrote to standard output.
    Stdout(Bytes),
    /// Bytes it wrote to standard error.
    Stderr(Bytes),
    /// How it ended; the last event.
    Exit(ExecExit),
}

/// Output and end of a running command. Dropping it ends the command.
pub struct ExecStream {
    events: BoxStream<'static, Result<ExecEvent, ClientError>>,
    is_unfinished: bool,
}

impl ExecStream {
    /// Whether its VM is still being made.
    #[must_use]
    pub fn is_unfinished(&self) -> bool {
        self.is_unfinished
    }
}

impl Stream for ExecStream {
    type Item = Result<ExecEvent, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_next_unpin(cx)
    }
}

impl fmt::Debug for ExecStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecStream").finish_non_exhaustive()
    }
}

/// Whether a server says that this reply is of a VM that is still being made.
pub(super) fn is_unfinished(response: &Response) -> bool {
    response.headers().contains_key(UNFINISHED_HEADER)
}

/// The log of an instance as it is made.
pub type FollowStream = BoxStream<'static, Result<FollowEvent, ClientError>>;

/// What happens to what is watched, as it happens.
pub type ChangeStream = BoxStream<'static, Result<FileChange, ClientError>>;

/// What a stream of events says.
#[derive(Debug, Clone, PartialEq)]
pub enum EventMessage {
    /// It begins: everything up to here is known.
    Begin(EventsPosition),
    /// Something happened.
    Event(Happened),
    /// What came after the position that was asked for is not kept: the state is to be read anew.
    Reset(EventsReset),
    /// Everything that is kept was said: the last message of a stream that does not follow.
    End(EventsPosition),
}

/// What happens on the server.
pub type EventsStream = BoxStream<'static, Result<EventMessage, ClientError>>;

type Source = EventStream<BoxStream<'static, Result<Bytes, reqwest::Error>>>;

/// What one raw event means.
enum Meaning<T> {
    /// Nothing to this client.
    Nothing,
    /// Something, and more will come.
    Item(T),
    /// The last one.
    Last(T),
}

pub(super) fn exec_events(url: String, response: Response) -> ExecStream {
    let is_unfinished = is_unfinished(&response);
    let events = typed(url, response, |event| match event.event.as_str() {
        "stdout" => Ok(Meaning::Item(ExecEvent::Stdout(bytes_of(event)?))),
        "stderr" => Ok(Meaning::Item(ExecEvent::Stderr(bytes_of(event)?))),
        "exit" => Ok(Meaning::Last(ExecEvent::Exit(
            serde_json::from_str(&event.data).map_err(|e| e.to_string())?,
        ))),
        _ => Ok(Meaning::Nothing),
    });
    ExecStream { events, is_unfinished }
}

pub(super) fn follow_events(url: String, response: Response) -> FollowStream {
    typed(url, response, |event| match serde_json::from_str(&event.data) {
        Ok(last @ FollowEvent::Ended { .. }) => Ok(Meaning::Last(last)),
        Ok(item) => Ok(Meaning::Item(item)),
        Err(_) if !FOLLOW_EVENTS.contains(&event.event.as_str()) => Ok(Meaning::Nothing),
        Err(fault) => Err(fault.to_string()),
    })
}

pub(super) fn change_events(url: String, response: Response) -> ChangeStream {
    typed(url, response, |event| {
        match serde_json::from_str::<FileChange>(&event.data) {
            Ok(last) if last.kind == FileChangeKind::End => Ok(Meaning::Last(last)),
            Ok(change) => Ok(Meaning::Item(change)),
            // Of a newer server.
            Err(_) => Ok(Meaning::Nothing),
        }
    })
}

pub(super) fn events(url: String, response: Response) -> EventsStream {
    typed(url, response, |event| {
        let fault = |fault: serde_json::Error| fault.to_string();
        let data = event.data.as_str();
        match event.event.as_str() {
            "begin" => Ok(Meaning::Item(EventMessage::Begin(
                serde_json::from_str(data).map_err(fault)?,
            ))),
            "reset" => Ok(Meaning::Item(EventMessage::Reset(
                serde_json::from_str(data).map_err(fault)?,
            ))),
            "end" => Ok(Meaning::Last(EventMessage::End(
                serde_json::from_str(data).map_err(fault)?,
            ))),
            // A newer server has more kinds.
            _ => Ok(match serde_json::from_str(data) {
                Ok(happened) => Meaning::Item(EventMessage::Event(happened)),
                Err(_) => Meaning::Nothing,
            }),
        }
    })
}

fn bytes_of(event: &Event) -> Result<Bytes, String> {
    STANDARD
        .decode(event.data.trim())
        .map(Bytes::from)
        .map_err(|fault| fault.to_string())
}

/// State between two events; `None` after the last one.
struct Reading<F> {
    url: String,
    request_id: Option<String>,
    source: Source,
    read: F,
}

fn typed<T: Send + 'static>(
    url: String,
    response: Response,
    read: impl Fn(&Event) -> Result<Meaning<T>, String> + Send + 'static,
) -> BoxStream<'static, Result<T, ClientError>> {
    let request_id = request_id(&response);
    let source = response.bytes_stream().boxed().eventsource();
    futures::stream::unfold(
        Some(Reading {
            url,
            request_id,
            source,
            read,
        }),
        next_event,
    )
    .boxed()
}

/// An item, and the state to continue from.
type Stepped<T, F> = (Result<T, ClientError>, Option<Reading<F>>);

async fn next_event<T, F>(state: Option<Reading<F>>) -> Option<Stepped<T, F>>
where
    F: Fn(&Event) -> Result<Meaning<T>, String>,
{
    let mut reading = state?;
    loop {
        let event = match next_raw(&mut reading.source, &reading.url).await {
            Ok(event) => event,
            Err(fault) => return Some((Err(fault), None)),
        };
        if event.event == "error" {
            let fault = error::from_reply(500, event.data.as_bytes(), reading.request_id.take(), None);
            return Some((Err(fault), None));
        }
        match (reading.read)(&event) {
            Ok(Meaning::Nothing) => {}
            Ok(Meaning::Item(item)) => return Some((Ok(item), Some(reading))),
            Ok(Meaning::Last(item)) => return Some((Ok(item), None)),
            Err(reason) => {
                let fault = ClientError::Decode {
                    url: reading.url,
                    reason,
                    request_id: reading.request_id,
                };
                return Some((Err(fault), None));
            }
        }
    }
}

async fn next_raw<S>(source: &mut S, url: &str) -> Result<Event, ClientError>
where
    S: Stream<Item = Result<Event, EventStreamError<reqwest::Error>>> + Unpin,
{
    let reason = match source.next().await {
        Some(Ok(event)) => return Ok(event),
        Some(Err(EventStreamError::Transport(fault))) => error::chain(&fault.without_url()),
        Some(Err(fault)) => error::chain(&fault),
        None => "the stream stopped before its last event".to_owned(),
    };
    Err(ClientError::Interrupted {
        url: url.to_owned(),
        reason,
    })
}
