//! `process.Process`: commands and terminals. They are sessions that the agent keeps, so none ends with the client that started it.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt as _;
use hearth_guest::client::{AgentClient, AgentError};
use hearth_guest::exec_session::{SessionInfo, SessionSignal, SessionSpec, SessionStart};
use hearth_guest::{ExecSpec, TerminalSize};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::access::{AsUser, Opened, Sandbox, opened};
use super::fault::{Code, Fault};
use super::frames::{Call, First, Messages, one, time_limit};
use super::stream::{Reader, TimeUp};
use super::users;
use crate::http::{AppState, answered};
use crate::secrets::env_file;

/// What a client sends when it does not say how large its terminal is.
const DEFAULT_SIZE: TerminalSize = TerminalSize { rows: 24, cols: 80 };

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    cmd: String,
    args: Vec<String>,
    envs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cwd: Option<String>,
}

#[derive(Deserialize)]
pub struct Size {
    #[serde(default)]
    cols: u16,
    #[serde(default)]
    rows: u16,
}

#[derive(Deserialize)]
pub struct Pty {
    size: Option<Size>,
}

impl Pty {
    fn size(&self) -> TerminalSize {
        match &self.size {
            Some(size) if size.rows > 0 && size.cols > 0 => TerminalSize {
                rows: size.rows,
                cols: size.cols,
            },
            _ => DEFAULT_SIZE,
        }
    }
}

#[derive(Deserialize)]
pub struct StartRequest {
    #[serde(default)]
    process: Config,
    pty: Option<Pty>,
    tag: Option<String>,
    stdin: Option<bool>,
}

/// Which process is meant.
#[derive(Deserialize, Default)]
pub struct Selector {
    pid: Option<u32>,
    tag: Option<String>,
}

impl Selector {
    fn text(&self) -> Result<String, Fault> {
        match (self.pid, &self.tag) {
            (Some(pid), None) => Ok(pid.to_string()),
            (None, Some(tag)) if !tag.is_empty() => Ok(tag.clone()),
            _ => Err(Fault::wrong("`process` must be either `pid` or `tag`")),
        }
    }
}

#[derive(Deserialize)]
pub struct OfProcess {
    #[serde(default)]
    process: Selector,
}

/// Starts a process, whose events follow.
pub async fn start(
    State(state): State<AppState>,
    AsUser(user): AsUser,
    headers: HeaderMap,
    First(request): First<StartRequest>,
) -> Response {
    match begin(&state, user, &headers, request).await {
        Ok(response) => response,
        Err(fault) => fault.into_stream(),
    }
}

async fn begin(
    state: &AppState,
    user: Option<String>,
    headers: &HeaderMap,
    request: StartRequest,
) -> Result<Response, Fault> {
    let sandbox = opened(state, headers).await?;
    if request.process.cmd.is_empty() {
        return Err(Fault::wrong("`process.cmd` names no program"));
    }
    let limit = time_limit(headers);
    let terminal = request.pty.as_ref().map(Pty::size);
    let mut argv = vec![request.process.cmd];
    argv.extend(request.process.args);
    let folder = request.process.cwd.filter(|cwd| !cwd.is_empty());
    let cwd = match &folder {
        Some(cwd) => users::folder(user.as_deref(), cwd)?,
        None => users::work_folder(user.as_deref()),
    };
    let spec = SessionSpec {
        command: ExecSpec {
            argv: Some(argv),
            cwd: Some(cwd),
            env: request.process.envs.into_iter().collect(),
            env_file: Some(env_file::PATH.to_owned()),
            user: user.clone(),
            timeout_ms: limit.map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
            ..ExecSpec::default()
        },
        tag: request.tag.filter(|tag| !tag.is_empty()),
        terminal,
        stdin: request.stdin.unwrap_or(false),
        read_only: false,
    };
    let inside = sandbox.enter(state).await?;
    let mut started = answered(state, &sandbox.row, inside.agent.start_session(&spec)).await?;
    if users::lacks(&started, &spec) {
        users::make(&inside.agent).await?;
        started = inside.agent.start_session(&spec).await;
    }
    let info = match started? {
        SessionStart::Started(info) => info,
        SessionStart::NotStarted { reason, code: None } => return Err(Fault::unavailable(reason)),
        SessionStart::NotStarted { reason, .. } if reason.starts_with("there is no user") => {
            return Err(Fault::new(Code::Unauthenticated, reason));
        }
        SessionStart::NotStarted { reason, .. } => return Err(Fault::wrong(reason)),
    };
    let time_up = limit.map(TimeUp::AgentEnds);
    let reader = Reader::of_new(state, &sandbox, inside, &info).await;
    Ok(reader.answer(headers, time_up))
}

/// The events of a process that was started before; what it printed before is not said again.
pub async fn connect(State(state): State<AppState>, headers: HeaderMap, First(request): First<OfProcess>) -> Response {
    let reading = async {
        let sandbox = opened(&state, &headers).await?;
        let session = request.process.text()?;
        let inside = sandbox.enter(&state).await?;
        let info = answered(&state, &sandbox.row, inside.agent.session(&session)).await??;
        let reader = Reader::of_known(&state, &sandbox, inside, &info).await;
        Ok::<_, Fault>(reader.answer(&headers, time_limit(&headers).map(TimeUp::StreamEnds)))
    };
    reading.await.unwrap_or_else(Fault::into_stream)
}

#[derive(Serialize)]
struct Listed {
    config: Config,
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
}

/// What runs.
pub async fn list(
    State(state): State<AppState>,
    Opened(sandbox): Opened,
    Call(_): Call<Value>,
) -> Result<Json<Value>, Fault> {
    let all = asked(&state, &sandbox, |agent| async move { agent.sessions().await }).await?;
    let shown = |info: SessionInfo| {
        let mut words = info.argv.into_iter();
        Listed {
            config: Config {
                cmd: words.next().unwrap_or_default(),
                args: words.collect(),
                envs: BTreeMap::new(),
                cwd: Some(info.cwd),
            },
            pid: info.pid,
            tag: info.tag,
        }
    };
    let processes: Vec<Listed> = all.into_iter().filter(SessionInfo::runs).map(shown).collect();
    Ok(Json(json!({ "processes": processes })))
}

/// What the agent in a sandbox answers.
pub async fn asked<T, Asked>(
    state: &AppState,
    sandbox: &Sandbox,
    ask: impl FnOnce(AgentClient) -> Asked,
) -> Result<T, Fault>
where
    Asked: Future<Output = Result<T, AgentError>> + Send,
{
    let inside = sandbox.enter(state).await?;
    let answer = answered(state, &sandbox.row, ask(inside.agent.clone())).await?;
    drop(inside.resumed);
    Ok(answer?)
}

#[derive(Deserialize)]
pub struct UpdateRequest {
    #[serde(default)]
    process: Selector,
    pty: Option<Pty>,
}

/// Changes the size of a terminal.
pub async fn update(
    State(state): State<AppState>,
    Opened(sandbox): Opened,
    Call(request): Call<UpdateRequest>,
) -> Result<Json<Value>, Fault> {
    let session = request.process.text()?;
    if let Some(pty) = request.pty {
        let size = pty.size();
        asked(&state, &sandbox, |agent| async move {
            agent.resize_session(&session, size).await
        })
        .await?;
    }
    Ok(Json(json!({})))
}

#[derive(Deserialize, Default)]
pub struct Input {
    stdin: Option<String>,
    pty: Option<String>,
}

impl Input {
    fn bytes(&self) -> Result<Bytes, Fault> {
        let text = self.stdin.as_ref().or(self.pty.as_ref());
        let text = text.ok_or_else(|| Fault::wrong("`input` must be `stdin` or `pty`"))?;
        let bytes = STANDARD.decode(text);
        bytes
            .map(Bytes::from)
            .map_err(|_| Fault::wrong("`input` must be base64"))
    }
}

#[derive(Deserialize)]
pub struct SendInputRequest {
    #[serde(default)]
    process: Selector,
    #[serde(default)]
    input: Input,
}

/// Writes to a process. It is held back by one that does not read, until the call's own time is up.
pub async fn send_input(
    State(state): State<AppState>,
    Opened(sandbox): Opened,
    headers: HeaderMap,
    Call(request): Call<SendInputRequest>,
) -> Result<Json<Value>, Fault> {
    let (session, bytes) = (request.process.text()?, request.input.bytes()?);
    let inside = sandbox.enter(&state).await?;
    write(&inside.agent, &session, bytes, time_limit(&headers)).await?;
    Ok(Json(json!({})))
}

async fn write(agent: &AgentClient, session: &str, bytes: Bytes, limit: Option<Duration>) -> Result<(), Fault> {
    let writing = agent.write_stdin(session, bytes, false);
    match limit {
        None => Ok(writing.await?),
        Some(limit) => tokio::time::timeout(limit, writing)
            .await
            .map_err(|_| Fault::new(Code::DeadlineExceeded, "the process did not read its input in time"))?
            .map_err(Into::into),
    }
}

#[derive(Deserialize, Default)]
struct InputMessage {
    start: Option<OfProcess>,
    data: Option<InputData>,
}

#[derive(Deserialize)]
struct InputData {
    #[serde(default)]
    input: Input,
}

/// Writes what a stream of messages holds.
pub async fn stream_input(
    State(state): State<AppState>,
    headers: HeaderMap,
    Messages(mut messages): Messages,
) -> Response {
    let writing = async {
        let sandbox = opened(&state, &headers).await?;
        let inside = sandbox.enter(&state).await?;
        let mut session = None;
        while let Some(message) = messages.next().await {
            let message: InputMessage =
                serde_json::from_value(message?).map_err(|_| Fault::wrong("this is no message of input"))?;
            if let Some(start) = message.start {
                let named = start.process.text()?;
                inside.agent.session(&named).await?;
                session = Some(named);
            }
            if let Some(data) = message.data {
                let session = session.as_ref();
                let session = session.ok_or_else(|| Fault::wrong("the first message must name the process"))?;
                write(&inside.agent, session, data.input.bytes()?, None).await?;
            }
        }
        Ok::<_, Fault>(one(&json!({})))
    };
    let limited = async {
        match time_limit(&headers) {
            None => writing.await,
            Some(limit) => tokio::time::timeout(limit, writing)
                .await
                .unwrap_or_else(|_| Err(Fault::new(Code::DeadlineExceeded, "the stream's time is up"))),
        }
    };
    limited.await.unwrap_or_else(Fault::into_stream)
}

/// Ends the input.
pub async fn close_stdin(
    State(state): State<AppState>,
    Opened(sandbox): Opened,
    Call(request): Call<OfProcess>,
) -> Result<Json<Value>, Fault> {
    let session = request.process.text()?;
    asked(&state, &sandbox, |agent| async move {
        agent.write_stdin(&session, Bytes::new(), true).await
    })
    .await?;
    Ok(Json(json!({})))
}

#[derive(Deserialize)]
pub struct SignalRequest {
    #[serde(default)]
    process: Selector,
    #[serde(default)]
    signal: Value,
}

/// Sends a signal. `SIGKILL` goes to all that the process has started: nothing of it stays.
pub async fn send_signal(
    State(state): State<AppState>,
    Opened(sandbox): Opened,
    Call(request): Call<SignalRequest>,
) -> Result<Json<Value>, Fault> {
    let session = request.process.text()?;
    let (signal, tree) = match (&request.signal, request.signal.as_str()) {
        (_, Some("SIGNAL_SIGTERM")) => (15, false),
        (_, Some("SIGNAL_SIGKILL")) => (9, true),
        (number, _) if *number == 15 => (15, false),
        (number, _) if *number == 9 => (9, true),
        _ => return Err(Fault::wrong("`signal` must be SIGNAL_SIGTERM or SIGNAL_SIGKILL")),
    };
    let ended = || Fault::new(Code::NotFound, "this process has ended");
    let sent = asked(&state, &sandbox, |agent| async move {
        let info = agent.session(&session).await?;
        if !info.runs() {
            return Ok(0);
        }
        agent.signal_session(&info.id, SessionSignal { signal, tree }).await
    });
    match sent.await {
        Ok(0) => Err(ended()),
        Ok(_) => Ok(Json(json!({}))),
        // It ended this moment.
        Err(Fault::Rpc {
            code: Code::FailedPrecondition,
            ..
        }) => Err(ended()),
        Err(fault) => Err(fault),
    }
}
