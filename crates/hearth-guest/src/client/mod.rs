//! The host's end of the agent protocol: one session, many requests at a time.
//!
//! A client belongs to one byte stream. When that is gone, so is the client ([`AgentClient::closed`]); a caller that wants to
//! continue asks the driver for another stream. There are no retries here, and no time limits besides the one of
//! [`AgentClient::connect`] and a command's own: dropping a future or a stream cancels the request in the guest.

use std::fmt;
use std::future::Future;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::Stream;
use h2::RecvStream;
use h2::client::SendRequest;
use http::{Method, Request, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::files::FaultCode;
use super::session::{self, CONNECTION_WINDOW, STREAM_WINDOW};
use super::{AgentFault, ExecSpec, Health, LogEntry, LogList, SetClock, TerminalSpec, paths};

mod activate;
mod exec;
mod files;
mod ports;
mod requests;
mod sessions;
mod ssh;
mod stream;
mod transfer;

pub use activate::{CLOCK_TOLERANCE, NewIdentity};
pub use exec::{ExecEvent, ExecOutput, ExecStream, TerminalInput};
pub use files::{NewFile, ReadFile};
pub use ports::{NOT_ACCEPTED, NOTHING_LISTENS};
pub use sessions::{SessionEvent, SessionInput, SessionStream};
pub use ssh::NO_SSH_SERVER;
pub use stream::GuestStream;
pub use transfer::{Download, Upload};

use exec::Limit;
use transfer::Sending;

/// How many requests may wait for the agent's settings to arrive; afterwards the agent's own limit counts.
const FIRST_STREAMS: usize = 256;

/// How many cancelled requests are remembered, so that what the agent still sends for them is no fault.
const REMEMBERED_RESETS: usize = 4096;

/// The most that is read of a reply that is not a stream (health, a fault).
const SMALL_REPLY: usize = 64 * 1024;

/// The most that is read of a list of logs.
const LOG_LIST: usize = 1024 * 1024;

/// What a request to the agent can end in besides success.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The agent did not answer before the deadline: the guest is still starting, stuck or has no agent.
    #[error("the agent in the VM did not answer in time")]
    NoAnswer,
    /// The connection ended. What was running in the guest for it is being ended, except detached commands.
    #[error("the connection to the agent in the VM was lost: {reason}")]
    Lost {
        /// What was seen of it.
        reason: String,
    },
    /// The agent refused.
    #[error("the agent in the VM refused ({status}): {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The agent's own words.
        message: String,
        /// The same for a program, where it is about files.
        code: Option<FaultCode>,
    },
    /// A command's time was up, and the agent did not say in time that it has ended.
    #[error("the command's time was up after {} s, and the agent in the VM has not confirmed that it has ended", limit.as_secs_f64())]
    Overdue {
        /// The time that it had.
        limit: Duration,
    },
    /// What came back is not what the protocol says, or an answer broke off.
    #[error("the agent in the VM answered something unexpected: {0}")]
    Protocol(String),
}

impl From<h2::Error> for AgentError {
    fn from(error: h2::Error) -> Self {
        if error.is_reset() && error.is_remote() {
            Self::Protocol(format!("it broke off its answer ({error})"))
        } else {
            Self::Lost {
                reason: error.to_string(),
            }
        }
    }
}

/// Speaks to the agent of one VM. Cheap to clone; all clones share the connection, which ends with the last of them.
#[derive(Clone)]
pub struct AgentClient {
    sender: SendRequest<Bytes>,
    closed: watch::Receiver<bool>,
}

impl fmt::Debug for AgentClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentClient")
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

impl AgentClient {
    /// Opens a session on a driver's stream. May be called before the guest is up: it asks until `deadline`.
    pub async fn connect<S>(stream: S, deadline: Instant) -> Result<Self, AgentError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let session = session::open(stream, deadline)
            .await
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::TimedOut => AgentError::NoAnswer,
                _ => AgentError::Lost {
                    reason: error.to_string(),
                },
            })?;
        let handshake = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_max_send_streams(FIRST_STREAMS)
            .max_concurrent_reset_streams(REMEMBERED_RESETS)
            .enable_push(false)
            .handshake(session);
        let (sender, connection) = timeout_at(deadline, handshake)
            .await
            .map_err(|_| AgentError::NoAnswer)??;
        let (closed_sender, closed) = watch::channel(false);
        tokio::spawn(async move {
            // Every request that is under way learns of the error by itself.
            drop(connection.await);
            closed_sender.send_replace(true);
        });
        Ok(Self { sender, closed })
    }

    /// True when the connection is over.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        *self.closed.borrow() || self.closed.has_changed().is_err()
    }

    /// Resolves when the connection is over.
    pub async fn closed(&self) {
        // An error means that the connection's task is gone, which is just as closed.
        drop(self.closed.clone().wait_for(|closed| *closed).await);
    }

    /// Asks whether the agent is there, and which.
    pub async fn health(&self) -> Result<Health, AgentError> {
        let reply = self.call(Method::GET, paths::HEALTH, None).await?;
        json(reply).await
    }

    /// Runs a command. What it prints streams back while `stdin` is still open; dropping the [`ExecStream`] ends every
    /// process of the command, unless it is detached.
    pub async fn exec(&self, spec: &ExecSpec, stdin: impl Into<Upload>) -> Result<ExecStream, AgentError> {
        let body = exec::request_body(spec, stdin.into())?;
        self.run(paths::EXEC, body, Limit::of(spec.timeout_ms)).await
    }

    /// Runs a command in a terminal. What it shows comes as [`ExecEvent::Stdout`]; dropping the [`ExecStream`] ends every process of
    /// the command, and so does an error of the input. An agent before protocol 5 refuses it with 404.
    pub async fn terminal(
        &self,
        spec: &TerminalSpec,
        input: impl Stream<Item = std::io::Result<TerminalInput>> + Send + 'static,
    ) -> Result<ExecStream, AgentError> {
        let body = exec::terminal_body(spec, input)?;
        self.run(paths::TERMINAL, body, Limit::of(spec.command.timeout_ms))
            .await
    }

    #[tracing::instrument(name = "agent", skip_all, fields(otel.kind = "client", otel.name = format!("POST {path}")))]
    async fn run(&self, path: &str, body: Upload, limit: Option<Limit>) -> Result<ExecStream, AgentError> {
        let taken = async {
            let (reply, sending) = self.start(Method::POST, path, Some(body)).await?;
            let reply = accepted(reply.await?).await?;
            Ok::<_, AgentError>((reply.into_body(), sending))
        };
        let (body, sending) = Limit::first(limit.as_ref(), taken).await?;
        Ok(ExecStream::new(body, sending, limit))
    }

    /// Runs a command without input and keeps the first `max_bytes` of each of its outputs; the rest is read and dropped.
    pub async fn exec_collect(&self, spec: &ExecSpec, max_bytes: usize) -> Result<ExecOutput, AgentError> {
        self.exec(spec, Upload::empty()).await?.collect(max_bytes).await
    }

    /// Writes a file, whole or not at all, owned by root; missing parent folders are made.
    pub async fn write_file(&self, path: &str, mode: u32, body: impl Into<Upload>) -> Result<(), AgentError> {
        let target = with_query(
            paths::FILES,
            &[(paths::PATH, path), (paths::MODE, &format!("{mode:o}"))],
        );
        self.call(Method::PUT, &target, Some(body.into())).await.map(drop)
    }

    /// Like [`AgentClient::write_file`], for another owner: a user name or `uid[:gid]`.
    pub async fn write_file_as(
        &self,
        path: &str,
        mode: u32,
        owner: &str,
        body: impl Into<Upload>,
    ) -> Result<(), AgentError> {
        let mode = format!("{mode:o}");
        let query = [(paths::PATH, path), (paths::MODE, mode.as_str()), (paths::OWNER, owner)];
        let target = with_query(paths::FILES, &query);
        self.call(Method::PUT, &target, Some(body.into())).await.map(drop)
    }

    /// Reads a file.
    pub async fn read_file(&self, path: &str) -> Result<Download, AgentError> {
        let target = with_query(paths::FILES, &[(paths::PATH, path)]);
        let reply = self.call(Method::GET, &target, None).await?;
        Ok(Download::new(reply.into_body()))
    }

    /// The logs in the VM. An agent before protocol 6 refuses it with 404.
    pub async fn logs(&self) -> Result<Vec<LogEntry>, AgentError> {
        let reply = self.call(Method::GET, paths::LOGS, None).await?;
        let body = Download::new(reply.into_body()).collect(LOG_LIST).await?;
        let list: LogList = serde_json::from_slice(&body).map_err(|error| AgentError::Protocol(error.to_string()))?;
        Ok(list.items)
    }

    /// A log's text; with `follow` also what will be written to it, until nothing can be any more.
    pub async fn read_log(&self, name: &str, follow: bool) -> Result<Download, AgentError> {
        let target = with_query(
            paths::LOG,
            &[
                (paths::NAME, name),
                (paths::FOLLOW, if follow { "true" } else { "false" }),
            ],
        );
        let reply = self.call(Method::GET, &target, None).await?;
        Ok(Download::new(reply.into_body()))
    }

    /// Extracts a tar stream below `path`, which is made when missing. Modes and symbolic links are kept.
    pub async fn put_tree(&self, path: &str, tar: impl Into<Upload>) -> Result<(), AgentError> {
        let target = with_query(paths::TREE, &[(paths::PATH, path)]);
        self.call(Method::PUT, &target, Some(tar.into())).await.map(drop)
    }

    /// Sets the guest's clock.
    pub async fn set_clock(&self, now: SystemTime) -> Result<(), AgentError> {
        let unix_nanos = unix_nanos(now)?;
        self.post(paths::CLOCK, &SetClock { unix_nanos }).await.map(drop)
    }

    /// Lets the agent prepare for commands at once: the VM is about to be frozen, and each of its forks has what was prepared.
    pub async fn quiesce(&self) -> Result<(), AgentError> {
        self.call(Method::POST, paths::QUIESCE, None).await.map(drop)
    }

    /// A `POST` of a value as JSON.
    async fn post(&self, target: &str, value: &impl Serialize) -> Result<Response<RecvStream>, AgentError> {
        let body = serde_json::to_vec(value).map_err(|error| AgentError::Protocol(error.to_string()))?;
        self.call(Method::POST, target, Some(body.into())).await
    }

    /// One request and its reply, whose status is a success.
    #[tracing::instrument(
        name = "agent",
        skip_all,
        fields(otel.kind = "client", otel.name = format!("{method} {}", without_query(target)))
    )]
    async fn call(
        &self,
        method: Method,
        target: &str,
        body: Option<Upload>,
    ) -> Result<Response<RecvStream>, AgentError> {
        let (reply, sending) = self.start(method, target, body).await?;
        let reply = accepted(reply.await?).await?;
        // Only now: the request's body continues while the reply is awaited.
        drop(sending);
        Ok(reply)
    }

    async fn start(
        &self,
        method: Method,
        target: &str,
        body: Option<Upload>,
    ) -> Result<
        (
            impl Future<Output = Result<Response<RecvStream>, h2::Error>> + use<>,
            Sending,
        ),
        AgentError,
    > {
        // The host name means nothing, but HTTP/2 wants an authority.
        let request = Request::builder()
            .method(method)
            .uri(format!("http://agent{target}"))
            .body(())
            .map_err(|error| AgentError::Protocol(error.to_string()))?;
        let mut sender = self.sender.clone().ready().await?;
        let (reply, stream) = sender.send_request(request, body.is_none())?;
        let sending = match body {
            Some(body) => Sending::spawn(stream, body),
            None => Sending::nothing(),
        };
        Ok((reply, sending))
    }
}

/// What follows it names files of users.
fn without_query(target: &str) -> &str {
    target.split('?').next().unwrap_or_default()
}

fn unix_nanos(now: SystemTime) -> Result<i64, AgentError> {
    let since = now.duration_since(UNIX_EPOCH).ok();
    since
        .and_then(|since| i64::try_from(since.as_nanos()).ok())
        .ok_or_else(|| AgentError::Protocol("the host's clock is out of range".into()))
}

fn with_query(path: &str, query: &[(&str, &str)]) -> String {
    let mut encoded = form_urlencoded::Serializer::new(String::new());
    encoded.extend_pairs(query);
    format!("{path}?{}", encoded.finish())
}

/// Passes a success on and turns everything else into an error.
async fn accepted(reply: Response<RecvStream>) -> Result<Response<RecvStream>, AgentError> {
    let status = reply.status();
    if status.is_success() {
        return Ok(reply);
    }
    let body = Download::new(reply.into_body())
        .collect(SMALL_REPLY)
        .await
        .unwrap_or_default();
    let (message, code) = match serde_json::from_slice::<AgentFault>(&body) {
        Ok(fault) => (fault.message, fault.code),
        Err(_) => (String::from_utf8_lossy(&body).into_owned(), None),
    };
    Err(AgentError::Refused {
        status: status.as_u16(),
        message,
        code,
    })
}

async fn json<T: DeserializeOwned>(reply: Response<RecvStream>) -> Result<T, AgentError> {
    let body = Download::new(reply.into_body()).collect(SMALL_REPLY).await?;
    serde_json::from_slice(&body).map_err(|error| AgentError::Protocol(error.to_string()))
}
