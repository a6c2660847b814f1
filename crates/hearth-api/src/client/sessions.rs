//! Exec sessions of a VM, and its processes.

use bytes::{Buf as _, Bytes};
use futures::stream::{BoxStream, StreamExt as _};
use reqwest::Method;

use super::Client;
use super::call::Call;
use super::error::{self, ClientError};
use super::exec::refusal;
use super::socket::{self, Received, Receiving, Sending};
use crate::exec::{CHANNEL_STDERR, CHANNEL_STDOUT};
use crate::ids::InstanceId;
use crate::page::Items;
use crate::session::{
    Process, ReadUntil, SendSignal, Session, SessionBegin, SessionMessage, SessionRemoved, SignalSent, StartSession,
};
use crate::terminal::TerminalSize;

/// What a client reads of a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AttachOptions {
    /// From this position on; what is not kept any more is said.
    pub from: u64,
    /// At most so many bytes that were printed before now.
    pub last: Option<u64>,
    /// For how long.
    pub until: ReadUntil,
    /// The command waits for this client.
    pub lossless: bool,
}

/// What a session has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionEvent {
    /// What it is. The first event.
    Begin(Box<SessionBegin>),
    /// It wrote this to its standard output, or its terminal shows it.
    Stdout(Bytes),
    /// It wrote this to its standard error.
    Stderr(Bytes),
    /// So many bytes are not kept any more.
    Dropped(u64),
    /// Nothing follows.
    End(Box<Session>),
}

/// What a session printed, as its bytes come.
pub struct PrintedBytes {
    /// So many bytes from the asked position on are not kept any more.
    pub dropped: u64,
    /// The rest.
    pub body: BoxStream<'static, Result<Bytes, ClientError>>,
}

/// The half that the session reads from.
#[derive(Debug)]
pub struct SessionInput(Sending);

/// The half that it prints to.
#[derive(Debug)]
pub struct SessionOutput(Receiving);

impl Client {
    fn of_session(&self, method: Method, id: &InstanceId, session: &str, rest: &[&str]) -> Call<'_> {
        let mut segments = vec!["instances", id.as_str(), "sessions", session];
        segments.extend(rest);
        self.call(method, &segments)
    }

    /// Starts a command that outlives this client.
    ///
    /// # Errors
    /// As every call; 409 when the tag is taken, 422 when the command cannot be started.
    pub async fn start_session(&self, id: &InstanceId, body: &StartSession) -> Result<Session, ClientError> {
        let call = self.post(&["instances", id.as_str(), "sessions"]);
        call.json(body)?.read().await
    }

    /// All sessions, the oldest first.
    ///
    /// # Errors
    /// As every call.
    pub async fn list_sessions(&self, id: &InstanceId) -> Result<Vec<Session>, ClientError> {
        let list: Items<Session> = self.get(&["instances", id.as_str(), "sessions"]).read().await?;
        Ok(list.items)
    }

    /// Removes one that has ended.
    ///
    /// # Errors
    /// As every call; 409 when it runs.
    pub async fn remove_session(&self, id: &InstanceId, session: &str) -> Result<SessionRemoved, ClientError> {
        self.of_session(Method::DELETE, id, session, &[]).read().await
    }

    /// Reads a session, and sends it input. Dropping both halves leaves it running.
    ///
    /// # Errors
    /// As every call.
    pub async fn attach_session(
        &self,
        id: &InstanceId,
        session: &str,
        options: AttachOptions,
    ) -> Result<(SessionInput, SessionOutput), ClientError> {
        let until = match options.until {
            ReadUntil::Now => "now",
            ReadUntil::Ended => "ended",
            ReadUntil::Closed => "closed",
        };
        let mut call = self
            .of_session(Method::GET, id, session, &["attach"])
            .query("from", &options.from.to_string())
            .query("until", until);
        if options.lossless {
            call = call.query("lossless", "true");
        }
        if let Some(last) = options.last {
            call = call.query("last", &last.to_string());
        }
        let (input, output) = socket::open(self, call).await?;
        Ok((SessionInput(input), SessionOutput(output)))
    }

    /// What a session printed, both outputs as one, from a position on, or its last bytes; with `follow` also what it will print, until
    /// nothing can print any more.
    ///
    /// # Errors
    /// As every call.
    pub async fn session_output(
        &self,
        id: &InstanceId,
        session: &str,
        from: u64,
        last: Option<u64>,
        follow: bool,
    ) -> Result<PrintedBytes, ClientError> {
        let mut call = self
            .of_session(Method::GET, id, session, &["output"])
            .query("from", &from.to_string())
            .query("follow", if follow { "true" } else { "false" })
            .accept("application/octet-stream")
            .timeout(None);
        if let Some(last) = last {
            call = call.query("last", &last.to_string());
        }
        let url = self.address();
        let response = call.open().await?;
        let dropped = response.headers().get("hearth-dropped-bytes");
        let dropped = dropped.and_then(|count| count.to_str().ok()?.parse().ok());
        let body = response.bytes_stream().map(move |chunk| {
            chunk.map_err(|fault| ClientError::Interrupted {
                url: url.clone(),
                reason: error::chain(&fault.without_url()),
            })
        });
        Ok(PrintedBytes {
            dropped: dropped.unwrap_or_default(),
            body: body.boxed(),
        })
    }

    /// One session.
    ///
    /// # Errors
    /// As every call.
    pub async fn get_session(&self, id: &InstanceId, session: &str) -> Result<Session, ClientError> {
        self.of_session(Method::GET, id, session, &[]).read().await
    }

    /// Writes to a session's standard input; comes back when that has taken it.
    ///
    /// # Errors
    /// As every call; 409 when it takes no input.
    pub async fn write_session_stdin(
        &self,
        id: &InstanceId,
        session: &str,
        bytes: Bytes,
        close: bool,
    ) -> Result<Session, ClientError> {
        self.of_session(Method::POST, id, session, &["stdin"])
            .query("close", if close { "true" } else { "false" })
            .upload(bytes.into())
            .await
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// As every call; 409 when it has ended.
    pub async fn signal_session(
        &self,
        id: &InstanceId,
        session: &str,
        body: &SendSignal,
    ) -> Result<SignalSent, ClientError> {
        let call = self.of_session(Method::POST, id, session, &["signal"]);
        call.json(body)?.read().await
    }

    /// Waits until a session has ended, or for so many seconds.
    ///
    /// # Errors
    /// As every call.
    pub async fn wait_session(
        &self,
        id: &InstanceId,
        session: &str,
        timeout_seconds: Option<u64>,
    ) -> Result<Session, ClientError> {
        let mut call = self.of_session(Method::GET, id, session, &["wait"]).timeout(None);
        if let Some(seconds) = timeout_seconds {
            call = call.query("timeoutSeconds", &seconds.to_string());
        }
        call.read().await
    }

    /// All processes of a VM.
    ///
    /// # Errors
    /// As every call.
    pub async fn list_processes(&self, id: &InstanceId) -> Result<Vec<Process>, ClientError> {
        let list: Items<Process> = self.get(&["instances", id.as_str(), "processes"]).read().await?;
        Ok(list.items)
    }
}

impl SessionInput {
    /// Bytes for its standard input, or its terminal.
    ///
    /// # Errors
    /// [`ClientError::Interrupted`].
    pub async fn bytes(&mut self, bytes: Bytes) -> Result<(), ClientError> {
        self.0.bytes(bytes).await
    }

    /// Its standard input ends here, for all clients.
    ///
    /// # Errors
    /// [`ClientError::Interrupted`].
    pub async fn end(&mut self) -> Result<(), ClientError> {
        self.0.message(&SessionMessage::StdinEnd).await
    }

    /// Its terminal is this large now.
    ///
    /// # Errors
    /// [`ClientError::Interrupted`].
    pub async fn resize(&mut self, size: TerminalSize) -> Result<(), ClientError> {
        self.0.message(&SessionMessage::Resize(size)).await
    }
}

impl SessionOutput {
    /// What comes next. After [`SessionEvent::End`] nothing does.
    ///
    /// # Errors
    /// The server's message when the VM or its agent can say no more; [`ClientError::Interrupted`] when the connection is gone. The
    /// session runs on then.
    pub async fn next(&mut self) -> Result<SessionEvent, ClientError> {
        loop {
            match self.0.next().await? {
                Received::Bytes(mut bytes) => match bytes.first().copied() {
                    Some(CHANNEL_STDOUT) => {
                        bytes.advance(1);
                        return Ok(SessionEvent::Stdout(bytes));
                    }
                    Some(CHANNEL_STDERR) => {
                        bytes.advance(1);
                        return Ok(SessionEvent::Stderr(bytes));
                    }
                    // A newer server may have more of them.
                    _ => {}
                },
                Received::Text(text) => match serde_json::from_str(&text) {
                    Ok(SessionMessage::Begin(begin)) => return Ok(SessionEvent::Begin(begin)),
                    Ok(SessionMessage::Dropped(dropped)) => return Ok(SessionEvent::Dropped(dropped.bytes)),
                    Ok(SessionMessage::End(session)) => return Ok(SessionEvent::End(session)),
                    Ok(SessionMessage::Error(detail)) => return Err(refusal(detail)),
                    _ => {}
                },
            }
        }
    }
}
