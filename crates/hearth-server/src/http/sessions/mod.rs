//! Exec sessions: commands that outlive who started them, since the agent in the VM keeps them, and the VM's processes. Clients that
//! read one are in [`attach`] and [`output`].

pub mod attach;
pub mod output;
mod release;

use std::time::Duration;

use axum::Json;
use axum::body::Body as RawBody;
use axum::extract::State;
use hearth_api::ids::InstanceId;
use hearth_api::page::Items;
use hearth_api::session::{Process, SendSignal, Session, SessionRemoved, SessionStatus, SignalSent, StartSession};
use hearth_api::terminal::TerminalSize;
use hearth_guest::DEFAULT_TERM;
use hearth_guest::client::{AgentError, Upload};
use hearth_guest::exec_session::{ProcessInfo, SessionInfo, SessionSignal, SessionSpec, SessionStart};
use jiff::Timestamp;
use nix::sys::signal::Signal;
use serde::Deserialize;
use utoipa::IntoParams;

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use super::exec::{Inside, enter, to_spec, usable};
use super::exec_end::to_exit;
use super::extract::{Body, Path, Query};
use super::files::content::{Incoming, Life};
use super::files::{ask, refused};
use super::terminal::guest_size;

/// Longest wait in one request.
const LONGEST_WAIT_SECONDS: u64 = 86_400;

/// A session as the API shows it.
fn shown(info: SessionInfo) -> Session {
    let at = |ms: i64| Timestamp::from_millisecond(ms).unwrap_or_default();
    Session {
        exit: info.end.as_ref().map(|end| to_exit(end, info.timeout_ms)),
        status: if info.runs() {
            SessionStatus::Running
        } else {
            SessionStatus::Ended
        },
        id: info.id,
        tag: info.tag,
        pid: info.pid,
        argv: info.argv,
        cwd: info.cwd,
        user: info.user,
        terminal: info.terminal.map(|size| TerminalSize {
            rows: size.rows,
            cols: size.cols,
        }),
        stdin_open: info.stdin_open,
        timeout_seconds: info.timeout_ms.map(|ms| ms / 1000),
        started_at: at(info.started_unix_ms),
        ended_at: info.ended_unix_ms.map(at),
        output_bytes: info.output_bytes,
        dropped_bytes: info.dropped_bytes,
        output_open: info.output_open,
        readers: info.readers,
    }
}

/// Start a session in a VM
///
/// A command that outlives this request, its client and a restart of the server: the VM's agent keeps it, until the VM, or the agent, is
/// restarted or the VM is released; with `releaseWhenEnded` the VM is released when it ends. Its output is kept in memory, the newest 4 MiB of each session and 32 MiB of all of them. A
/// session is found by its id, the id of its first process, or its tag. The reply comes when the command runs; one that cannot be
/// started is 422 with the reason, a tag that a running session has is 409. A session does not renew the lease by itself; its clients do.
#[utoipa::path(
    post,
    path = "/instances/{id}/sessions",
    tag = "sessions",
    request_body = StartSession,
    responses((status = 200, body = Session, description = "It runs"), (status = 409, description = "refused"), (status = 410, description = "refused"))
)]
pub async fn start_session(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
    Body(body): Body<StartSession>,
) -> Result<Json<Session>, ApiError> {
    let row = usable(&state, &caller, &id).await?;
    let mut request = body.request;
    let stdin = request.stdin.take().unwrap_or_default();
    let mut command = to_spec(request)?;
    if body.terminal.is_some() && !command.env.iter().any(|(name, _)| name == "TERM") {
        command.env.push(("TERM".to_owned(), DEFAULT_TERM.to_owned()));
    }
    let reads = body.open_stdin || !stdin.is_empty();
    let spec = SessionSpec {
        command,
        tag: body.tag.map(String::from),
        terminal: body.terminal.map(guest_size),
        stdin: reads,
        read_only: body.read_only,
    };
    if body.read_only && reads {
        return Err(ApiError::field(
            "readOnly",
            "a session that takes no input has no `stdin`",
        ));
    }
    let Inside { agent, resumed } = enter(&state, &row).await?;
    let releases = match body.release_when_ended {
        true => Some(release::begin(&state, &row, spec.tag.as_deref()).await?),
        false => None,
    };
    let started = ask(&state, &row, resumed, agent.start_session(&spec)).await;
    if let Some(releases) = releases {
        releases.end(&state, &row, &started).await?;
    }
    let info = match started? {
        SessionStart::Started(info) => info,
        SessionStart::NotStarted { reason, code: Some(_) } => return Err(ApiError::field("request", reason)),
        SessionStart::NotStarted { reason, code: None } => return Err(ApiError::unavailable(reason)),
    };
    if !stdin.is_empty() {
        // As much as fits into its pipe is taken at once; the rest is taken while it reads, whether or not its client waits.
        let (id, close) = (info.id.clone(), !body.open_stdin && spec.terminal.is_none());
        tokio::spawn(async move {
            if let Err(error) = agent.write_stdin(&id, Upload::from(stdin), close).await {
                tracing::debug!(%error, session = id, "a session did not read its input");
            }
        });
    }
    Ok(Json(shown(*info)))
}

/// The sessions in a VM
///
/// Those that run, and the last 64 that have ended; the oldest first.
#[utoipa::path(
    get,
    path = "/instances/{id}/sessions",
    tag = "sessions",
    responses((status = 200, body = Items<Session>, description = "All of them"), (status = 409, description = "refused"), (status = 410, description = "refused"))
)]
pub async fn list_sessions(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
) -> Result<Json<Items<Session>>, ApiError> {
    let row = usable(&state, &caller, &id).await?;
    let Inside { agent, resumed } = enter(&state, &row).await?;
    let items = ask(&state, &row, resumed, agent.sessions()).await?;
    Ok(Json(Items {
        items: items.into_iter().map(shown).collect(),
    }))
}

/// Get a session in a VM
#[utoipa::path(
    get,
    path = "/instances/{id}/sessions/{session}",
    tag = "sessions",
    responses((status = 200, body = Session, description = "The session"), (status = 409, description = "refused"), (status = 410, description = "refused"))
)]
pub async fn get_session(
    State(state): State<AppState>,
    caller: Caller,
    Path((id, session)): Path<(InstanceId, String)>,
) -> Result<Json<Session>, ApiError> {
    let row = usable(&state, &caller, &id).await?;
    let Inside { agent, resumed } = enter(&state, &row).await?;
    let info = ask(&state, &row, resumed, agent.session(&session)).await?;
    Ok(Json(shown(info)))
}

/// Remove a session that has ended
///
/// Its record and its output go. One that runs is 409: send it a signal first.
#[utoipa::path(
    delete,
    path = "/instances/{id}/sessions/{session}",
    tag = "sessions",
    responses((status = 200, body = SessionRemoved, description = "It is removed"), (status = 409, description = "refused"), (status = 410, description = "refused"))
)]
pub async fn remove_session(
    State(state): State<AppState>,
    caller: Caller,
    Path((id, session)): Path<(InstanceId, String)>,
) -> Result<Json<SessionRemoved>, ApiError> {
    let row = usable(&state, &caller, &id).await?;
    let Inside { agent, resumed } = enter(&state, &row).await?;
    let removed = async {
        let info = agent.session(&session).await?;
        agent.remove_session(&info.id).await?;
        Ok::<_, AgentError>(info.id)
    };
    let id = ask(&state, &row, resumed, removed).await?;
    Ok(Json(SessionRemoved { id, removed: true }))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct StdinQuery {
    /// The input ends after the body. A terminal gets Ctrl-D instead, and takes input afterwards.
    #[param(nullable = false, required = false, default = false)]
    close: Option<bool>,
}

/// Write to a session's standard input
///
/// The reply comes when the command, or its pipe, has taken all of it: it is held back by a command that does not read. An empty body
/// with `close=true` ends the input. A session without open input is 409.
#[utoipa::path(
    post,
    path = "/instances/{id}/sessions/{session}/stdin",
    tag = "sessions",
    params(StdinQuery),
    request_body(content = String, content_type = "application/octet-stream", description = "The bytes"),
    responses((status = 200, body = Session, description = "It was written"), (status = 409, description = "refused"), (status = 410, description = "refused"))
)]
pub async fn write_session_stdin(
    State(state): State<AppState>,
    caller: Caller,
    Path((id, session)): Path<(InstanceId, String)>,
    Query(query): Query<StdinQuery>,
    body: RawBody,
) -> Result<Json<Session>, ApiError> {
    let row = usable(&state, &caller, &id).await?;
    let Inside { agent, resumed } = enter(&state, &row).await?;
    let body = Incoming::new(body, Life::of(&state, &row));
    // First, and not after the body: what is not there is said before a byte is sent.
    let info = ask(&state, &row, None, agent.session(&session)).await?;
    let close = query.close.unwrap_or(false);
    // No limit of the first answer: a command may read late.
    let written = agent.write_stdin(&info.id, body.upload(), close).await;
    body.end(Ok(written)).await?;
    let info = ask(&state, &row, resumed, agent.session(&info.id)).await?;
    Ok(Json(shown(info)))
}

/// Change the size of a session's terminal
#[utoipa::path(
    post,
    path = "/instances/{id}/sessions/{session}/resize",
    tag = "sessions",
    request_body = TerminalSize,
    responses((status = 200, body = Session, description = "It has this size"), (status = 409, description = "refused"), (status = 410, description = "refused"))
)]
pub async fn resize_session(
    State(state): State<AppState>,
    caller: Caller,
    Path((id, session)): Path<(InstanceId, String)>,
    Body(size): Body<TerminalSize>,
) -> Result<Json<Session>, ApiError> {
    let row = usable(&state, &caller, &id).await?;
    let Inside { agent, resumed } = enter(&state, &row).await?;
    let resized = async {
        agent.resize_session(&session, guest_size(size)).await?;
        agent.session(&session).await
    };
    let info = ask(&state, &row, resumed, resized).await?;
    Ok(Json(shown(info)))
}

/// Send a signal to a session
///
/// To its first process, or with `tree` to every process that it has started. A session that has ended is 409, unless `tree` reaches
/// a process that it left running.
#[utoipa::path(
    post,
    path = "/instances/{id}/sessions/{session}/signal",
    tag = "sessions",
    request_body = SendSignal,
    responses((status = 200, body = SignalSent, description = "It was sent"), (status = 409, description = "refused"), (status = 410, description = "refused"))
)]
pub async fn signal_session(
    State(state): State<AppState>,
    caller: Caller,
    Path((id, session)): Path<(InstanceId, String)>,
    Body(body): Body<SendSignal>,
) -> Result<Json<SignalSent>, ApiError> {
    let row = usable(&state, &caller, &id).await?;
    let signal = SessionSignal {
        signal: signal_number(&body.signal)?,
        tree: body.tree,
    };
    let Inside { agent, resumed } = enter(&state, &row).await?;
    let sent = async {
        let info = agent.session(&session).await?;
        let processes = agent.signal_session(&info.id, signal).await?;
        Ok::<_, AgentError>(SignalSent { id: info.id, processes })
    };
    ask(&state, &row, resumed, sent).await.map(Json)
}

fn signal_number(name: &str) -> Result<i32, ApiError> {
    let number = match name.parse::<i32>() {
        Ok(number) => Signal::try_from(number).ok(),
        Err(_) => format!("SIG{}", name.strip_prefix("SIG").unwrap_or(name))
            .parse::<Signal>()
            .ok(),
    };
    number
        .map(|signal| signal as i32)
        .ok_or_else(|| ApiError::field("signal", "there is no such signal in Linux"))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct WaitQuery {
    /// How long at most; until it has ended, or a day, when absent.
    #[param(nullable = false, required = false, minimum = 0, maximum = 86400)]
    #[serde(rename = "timeoutSeconds")]
    timeout_seconds: Option<u64>,
}

/// Wait for a session's end
///
/// The reply comes when its first process has ended, or the time is up: the session's `status` says which. That the time is up is no
/// error; ask again.
#[utoipa::path(
    get,
    path = "/instances/{id}/sessions/{session}/wait",
    tag = "sessions",
    params(WaitQuery),
    responses((status = 200, body = Session, description = "The session as it is then"), (status = 409, description = "refused"), (status = 410, description = "refused"))
)]
pub async fn wait_session(
    State(state): State<AppState>,
    caller: Caller,
    Path((id, session)): Path<(InstanceId, String)>,
    Query(query): Query<WaitQuery>,
) -> Result<Json<Session>, ApiError> {
    let row = usable(&state, &caller, &id).await?;
    let Inside { agent, resumed } = enter(&state, &row).await?;
    let seconds = query.timeout_seconds.unwrap_or(LONGEST_WAIT_SECONDS);
    let started = attach::Reading::begin(&state, &row).await;
    // That there is such a session, and an agent, is said soon.
    let info = ask(&state, &row, None, agent.session(&session)).await?;
    let waited = agent.wait_session(&info.id, Duration::from_secs(seconds)).await;
    drop(resumed);
    match waited {
        Ok(info) => Ok(Json(shown(info))),
        Err(error @ AgentError::Refused { .. }) => Err(refused(error)),
        Err(error) => Err(started.lost(&error).await),
    }
}

/// The processes in a VM
///
/// All of them, by id, with the session that each is of; without threads of the kernel.
#[utoipa::path(
    get,
    path = "/instances/{id}/processes",
    tag = "sessions",
    responses((status = 200, body = Items<Process>, description = "All of them"), (status = 409, description = "refused"), (status = 410, description = "refused"))
)]
pub async fn list_processes(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
) -> Result<Json<Items<Process>>, ApiError> {
    let row = usable(&state, &caller, &id).await?;
    let Inside { agent, resumed } = enter(&state, &row).await?;
    let processes = ask(&state, &row, resumed, agent.processes()).await?;
    Ok(Json(Items {
        items: processes.into_iter().map(shown_process).collect(),
    }))
}

fn shown_process(process: ProcessInfo) -> Process {
    Process {
        pid: process.pid,
        parent: process.parent,
        user: process.user,
        state: process.state,
        rss_kib: process.rss_kib,
        cpu_ms: process.cpu_ms,
        started_at: Timestamp::from_millisecond(process.started_unix_ms).unwrap_or_default(),
        command: process.command,
        session: process.session,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_name_and_number() {
        for (name, number) in [("TERM", 15), ("SIGKILL", 9), ("2", 2), ("USR1", 10)] {
            assert_eq!(signal_number(name).unwrap(), number, "{name}");
        }
        for none in ["NOPE", "99", "SIGSIGTERM"] {
            assert!(signal_number(none).is_err(), "{none}");
        }
    }
}
