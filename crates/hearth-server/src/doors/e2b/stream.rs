//! The events of a process, as a stream of frames that its client takes as fast as it likes.
//!
//! The process waits for a client that reads slowly, so that nothing is lost; for one that does not read at all it does not: the
//! reader lets go after a while, and reads on from there when the client does.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderMap;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt as _;
use hearth_guest::ExecEnd;
use hearth_guest::client::{AgentClient, SessionEvent, SessionStream};
use hearth_guest::exec_session::{SessionAttach, SessionInfo, Until};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::access::Sandbox;
use super::fault::{Code, Fault};
use super::frames;
use crate::http::{AppState, Inside, Reading};
use crate::vms::pause::ResumedVm;

/// How often a client wants to hear that a silent process runs.
const PING_HEADER: &str = "keepalive-ping-interval";
/// When it does not say.
const PING: Duration = Duration::from_secs(90);
/// Frames that wait for a client.
const WAITING: usize = 16;
/// A client that takes nothing for so long is not waited for.
const CLIENT_PATIENCE: Duration = Duration::from_secs(10);
/// The agent ends a process whose time is up; when it does not say so, the host does.
const AGENT_PATIENCE: Duration = Duration::from_secs(15);

/// What happens when the time of a stream is up.
#[derive(Debug, Clone, Copy)]
pub enum TimeUp {
    /// The agent ends the process, and the stream with it.
    AgentEnds(Duration),
    /// The stream ends; the process does not.
    StreamEnds(Duration),
}

/// Reads one process.
pub struct Reader {
    agent: AgentClient,
    /// Work is under way in the VM for as long as this is held.
    _resumed: Option<ResumedVm>,
    reading: Reading,
    sandbox: String,
    session: String,
    pid: u32,
    is_terminal: bool,
    /// The first byte that was not read.
    position: u64,
}

/// The client is gone.
struct Gone;

impl Reader {
    /// One that was started for this client: from its first byte on.
    pub async fn of_new(state: &AppState, sandbox: &Sandbox, inside: Inside, info: &SessionInfo) -> Self {
        Self::at(state, sandbox, inside, info, 0).await
    }

    /// One that runs already: from now on.
    pub async fn of_known(state: &AppState, sandbox: &Sandbox, inside: Inside, info: &SessionInfo) -> Self {
        Self::at(state, sandbox, inside, info, info.output_bytes).await
    }

    async fn at(state: &AppState, sandbox: &Sandbox, inside: Inside, info: &SessionInfo, position: u64) -> Self {
        Self {
            agent: inside.agent,
            _resumed: inside.resumed,
            reading: Reading::begin(state, &sandbox.row).await,
            sandbox: sandbox.name().to_owned(),
            session: info.id.clone(),
            pid: info.pid,
            is_terminal: info.terminal.is_some(),
            position,
        }
    }

    /// The answer: the process' start, what it prints, and its end.
    pub fn answer(self, headers: &HeaderMap, time_up: Option<TimeUp>) -> Response {
        let ping = headers.get(PING_HEADER).and_then(|value| value.to_str().ok());
        let ping = ping
            .and_then(|text| text.trim().parse().ok())
            .filter(|seconds| *seconds > 0);
        let ping = ping.map_or(PING, Duration::from_secs);
        let (sender, mut frames) = mpsc::channel(WAITING);
        tokio::spawn(self.run(sender, ping, time_up));
        let frames = futures::stream::poll_fn(move |context| frames.poll_recv(context));
        frames::response(Body::from_stream(frames.map(Ok::<Bytes, Infallible>)))
    }

    async fn run(mut self, client: mpsc::Sender<Bytes>, ping: Duration, time_up: Option<TimeUp>) {
        let limit = time_up.map(|time_up| match time_up {
            TimeUp::AgentEnds(limit) => limit + AGENT_PATIENCE,
            TimeUp::StreamEnds(limit) => limit,
        });
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let events = async {
            if client
                .send(event(json!({ "start": { "pid": self.pid } })))
                .await
                .is_err()
            {
                return Err(Gone);
            }
            self.read(&client, ping).await
        };
        let ended = tokio::select! {
            ended = events => ended,
            () = until(deadline) => Ok(Some(time_is_up())),
            () = client.closed() => Err(Gone),
        };
        if let Ok(error) = ended {
            drop(client.send(frames::end(error.as_ref())).await);
        }
    }

    /// Everything until the process has ended; the error that the stream ends with, if any.
    async fn read(&mut self, client: &mpsc::Sender<Bytes>, ping: Duration) -> Result<Option<Fault>, Gone> {
        let mut stream: Option<SessionStream> = None;
        let mut begun = false;
        loop {
            let reading = match &mut stream {
                Some(reading) => reading,
                None => {
                    begun = false;
                    match self.attach().await {
                        Ok(opened) => stream.insert(opened),
                        Err(fault) => return Ok(Some(fault)),
                    }
                }
            };
            let next = tokio::select! {
                next = reading.next() => next,
                () = tokio::time::sleep(ping) => {
                    client.send(event(json!({ "keepalive": {} }))).await.map_err(|_| Gone)?;
                    continue;
                }
            };
            let frame = match next {
                Some(Ok(SessionEvent::Stdout(bytes))) => {
                    self.position += bytes.len() as u64;
                    let channel = if self.is_terminal { "pty" } else { "stdout" };
                    event(json!({ "data": { channel: STANDARD.encode(bytes) } }))
                }
                Some(Ok(SessionEvent::Stderr(bytes))) => {
                    self.position += bytes.len() as u64;
                    event(json!({ "data": { "stderr": STANDARD.encode(bytes) } }))
                }
                Some(Ok(SessionEvent::Dropped(bytes))) => {
                    tracing::info!(
                        sandbox = self.sandbox,
                        bytes,
                        "a client read too slowly, and output was dropped"
                    );
                    self.position += bytes;
                    continue;
                }
                Some(Ok(SessionEvent::Info(info))) => {
                    let end = match (&info.end, std::mem::replace(&mut begun, true)) {
                        (Some(end), true) => end,
                        // The last event always says the end.
                        (_, false) => continue,
                        (None, true) => return Ok(Some(Fault::unavailable("the process' end is not known"))),
                    };
                    if matches!(end, ExecEnd::TimedOut { .. }) {
                        return Ok(Some(time_is_up()));
                    }
                    let last = event(json!({ "end": end_of(end) }));
                    client.send(last).await.map_err(|_| Gone)?;
                    return Ok(None);
                }
                Some(Err(error)) => return Ok(Some(self.reading.lost(&error).await.into())),
                None => return Ok(Some(Fault::unavailable("the output of the process broke off"))),
            };
            match client.send_timeout(frame, CLIENT_PATIENCE).await {
                Ok(()) => {}
                Err(mpsc::error::SendTimeoutError::Closed(_)) => return Err(Gone),
                Err(mpsc::error::SendTimeoutError::Timeout(frame)) => {
                    // The process is let go until the client reads.
                    stream = None;
                    client.send(frame).await.map_err(|_| Gone)?;
                }
            }
        }
    }

    async fn attach(&self) -> Result<SessionStream, Fault> {
        let wanted = SessionAttach {
            session: self.session.clone(),
            from: self.position,
            until: Until::Ended,
            lossless: true,
            ..SessionAttach::default()
        };
        let attached = self.agent.attach_session(&wanted, futures::stream::pending()).await;
        attached.map_err(Fault::from)
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn time_is_up() -> Fault {
    Fault::new(Code::DeadlineExceeded, "the time of this process is up")
}

fn event(of: Value) -> Bytes {
    frames::message(&json!({ "event": of }))
}

/// How a process ended, in the words of Go's `os.ProcessState`.
fn end_of(end: &ExecEnd) -> Value {
    match end {
        ExecEnd::Exited {
            code,
            signal,
            out_of_memory,
            ..
        } => {
            let mut said = match (code, signal) {
                (Some(code), _) => json!({ "exitCode": code, "exited": true, "status": format!("exit status {code}") }),
                (None, Some(signal)) => {
                    let status = format!("signal: {}", signal_words(*signal));
                    json!({ "exitCode": -1, "exited": false, "status": status, "error": status })
                }
                (None, None) => json!({ "exitCode": -1, "exited": false, "status": "unknown" }),
            };
            if let Some(whom) = out_of_memory {
                said["error"] = json!(format!("the VM had no memory left, so its kernel killed {whom}"));
            }
            said
        }
        ExecEnd::NotStarted { reason, code } => {
            json!({ "exitCode": code.unwrap_or(-1), "exited": false, "status": "not started", "error": reason })
        }
        ExecEnd::TimedOut { .. } | ExecEnd::Detached { .. } => {
            json!({ "exitCode": -1, "exited": false, "status": "unknown" })
        }
    }
}

fn signal_words(signal: i32) -> String {
    match signal {
        1 => "hangup".to_owned(),
        2 => "interrupt".to_owned(),
        3 => "quit".to_owned(),
        6 => "aborted".to_owned(),
        9 => "killed".to_owned(),
        11 => "segmentation fault".to_owned(),
        13 => "broken pipe".to_owned(),
        15 => "terminated".to_owned(),
        other => format!("signal {other}"),
    }
}
