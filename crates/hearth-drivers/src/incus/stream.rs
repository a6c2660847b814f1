//! The byte stream to the agent in an instance. Incus runs `hearth-agent relay` in it and gives the streams of that command as
//! WebSockets: no network path, no device, the same for containers and VMs, through any member to any member.
//!
//! The stream is there before the guest is: what is written waits until the command can be started.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use hearth_api::ids::VmId;
use reqwest::{Method, Upgraded};
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use super::api::{Answer, Api, ApiError, part};

/// How much waits on its way to the guest, each way.
const PIPE_BYTES: usize = 256 * 1024;
/// The most in one message.
const MESSAGE_BYTES: usize = 64 * 1024;
/// Between two attempts to start the command: short at first, because somebody is waiting.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Longest wait for the streams of a command that was started.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);
/// Where the agent is in every image.
pub(super) const AGENT: &str = "/usr/local/sbin/hearth-agent";

type Socket = WebSocketStream<Upgraded>;

/// The streams that are open: one per VM.
#[derive(Debug, Default)]
pub(super) struct Streams(Mutex<HashMap<VmId, CancellationToken>>);

impl Streams {
    /// Ends the stream that is open, if there is one. Its user reads end-of-file.
    pub(super) fn end(&self, id: &VmId) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = open.remove(id) {
            before.cancel();
        }
    }

    fn begin(&self, id: &VmId) -> CancellationToken {
        let token = CancellationToken::new();
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, token| !token.is_cancelled());
        if let Some(before) = open.insert(id.clone(), token.clone()) {
            before.cancel();
        }
        token
    }
}

/// What an `exec` operation says of its streams.
#[derive(Debug, Deserialize)]
struct Exec {
    id: String,
    metadata: Fds,
}

#[derive(Debug, Deserialize)]
struct Fds {
    fds: HashMap<String, String>,
}

/// Whether the instance may still come to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prospect {
    Wait,
    Ended,
}

/// A stream to the agent of an instance. `prospect` is asked whenever the command cannot be started.
pub(super) fn open<F>(
    streams: &Streams,
    api: Api,
    id: &VmId,
    project: String,
    prospect: impl Fn() -> F + Send + Sync + 'static,
) -> DuplexStream
where
    F: Future<Output = Prospect> + Send,
{
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let ended = streams.begin(id);
    let name = id.to_string();
    tokio::spawn(async move {
        let _done = ended.clone().drop_guard();
        let carry = async {
            let (mut reader, mut writer) = tokio::io::split(theirs);
            let mut early = Vec::new();
            let Some(sockets) = start(&api, &name, &project, prospect, &mut reader, &mut early).await else {
                return;
            };
            carry(sockets, early, &mut reader, &mut writer).await;
        };
        // Dropping our end of the pipe is what its user sees as the end; dropping the sockets ends the command.
        tokio::select! {
            () = ended.cancelled() => {}
            () = carry => {}
        }
    });
    ours
}

/// The streams of a command: its input, and both of its outputs.
type Sockets = [Socket; 3];

/// Starts the command, again and again while the guest is not up. `None` when its user has gone or the instance has ended. What its user
/// writes meanwhile is read into `early`: only so a user that is gone is noticed.
async fn start<F>(
    api: &Api,
    name: &str,
    project: &str,
    prospect: impl Fn() -> F,
    reader: &mut ReadHalf<DuplexStream>,
    early: &mut Vec<u8>,
) -> Option<Sockets>
where
    F: Future<Output = Prospect>,
{
    let mut pause = FIRST_PAUSE;
    loop {
        let attempt = async {
            let tried = tokio::time::timeout(OPEN_TIMEOUT, exec(api, name, project)).await;
            match tried {
                Ok(Ok(sockets)) => Some(Ok(sockets)),
                Ok(Err(error)) => {
                    tracing::debug!(vm = name, %error, "the agent's relay cannot be started yet");
                    match prospect().await {
                        Prospect::Ended => None,
                        Prospect::Wait => Some(Err(())),
                    }
                }
                Err(_) => Some(Err(())),
            }
        };
        match attempt.await? {
            Ok(sockets) => return Some(sockets),
            Err(()) => {
                let wait = tokio::time::sleep(pause);
                tokio::pin!(wait);
                let mut buffer = [0; 4096];
                loop {
                    tokio::select! {
                        () = &mut wait => break,
                        read = reader.read(&mut buffer), if early.len() < PIPE_BYTES => match read {
                            Ok(0) | Err(_) => return None,
                            Ok(count) => early.extend_from_slice(&buffer[..count]),
                        },
                    }
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

async fn exec(api: &Api, name: &str, project: &str) -> Result<Sockets, ApiError> {
    let body = json!({
        "command": [AGENT, "relay"],
        "wait-for-websocket": true,
        "interactive": false,
        "user": 0,
        "group": 0,
        "cwd": "/",
    });
    let path = format!("/1.0/instances/{}/exec?project={}", part(name), part(project));
    let Answer::Later(_, metadata) = api.call(Method::POST, &path, Some(&body)).await? else {
        return Err(ApiError::Silent("a command was not started".to_owned()));
    };
    let exec: Exec = serde_json::from_value(metadata).map_err(|error| ApiError::Silent(error.to_string()))?;
    // Without `control`: the command ends with its input.
    let socket = async |fd: &str| {
        let secret = exec.metadata.fds.get(fd);
        let secret = secret.ok_or_else(|| ApiError::Silent(format!("a command has no stream {fd}")))?;
        api.websocket(&format!(
            "/1.0/operations/{}/websocket?secret={}",
            part(&exec.id),
            part(secret)
        ))
        .await
    };
    // Together: the command starts when all are there.
    let (input, output, errors) = tokio::try_join!(socket("0"), socket("1"), socket("2"))?;
    Ok([input, output, errors])
}

/// Carries bytes until either side ends.
async fn carry(
    [input, output, errors]: Sockets,
    early: Vec<u8>,
    reader: &mut ReadHalf<DuplexStream>,
    writer: &mut WriteHalf<DuplexStream>,
) {
    let (mut to_guest, mut answers) = input.split();
    let (_, mut from_guest) = output.split();
    let (_, mut complaints) = errors.split();
    tokio::select! {
        () = send(early, reader, &mut to_guest) => {}
        () = receive(&mut from_guest, writer) => {}
        // Read only so that the connection's own messages are answered.
        () = drain(&mut answers) => {}
        () = log(&mut complaints) => {}
    }
    // The command ends with its input.
    drop(to_guest.send(Message::text("")).await);
    drop(to_guest.close().await);
}

async fn send(early: Vec<u8>, reader: &mut ReadHalf<DuplexStream>, to_guest: &mut SplitSink<Socket, Message>) {
    if !early.is_empty() && to_guest.send(Message::Binary(early.into())).await.is_err() {
        return;
    }
    let mut buffer = vec![0; MESSAGE_BYTES];
    loop {
        match reader.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => {
                let message = Message::Binary(Bytes::copy_from_slice(&buffer[..count]));
                if to_guest.send(message).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn receive(from_guest: &mut SplitStream<Socket>, writer: &mut WriteHalf<DuplexStream>) {
    while let Some(Ok(message)) = from_guest.next().await {
        match message {
            Message::Binary(bytes) => match writer.write_all(&bytes).await {
                Ok(()) => {}
                Err(_) => return,
            },
            // An empty text: the command has closed its output.
            Message::Text(_) | Message::Close(_) => return,
            _ => {}
        }
    }
}

async fn drain(socket: &mut SplitStream<Socket>) {
    while let Some(Ok(message)) = socket.next().await {
        if matches!(message, Message::Close(_)) {
            return;
        }
    }
    // How the input ends says nothing of the output.
    std::future::pending::<()>().await;
}

/// What the relay complains about; a guest may say anything, so it is not passed on.
async fn log(complaints: &mut SplitStream<Socket>) {
    while let Some(Ok(message)) = complaints.next().await {
        if let Message::Binary(bytes) = message {
            tracing::debug!(bytes = bytes.len(), "the agent's relay complains");
        }
    }
    std::future::pending::<()>().await;
}
