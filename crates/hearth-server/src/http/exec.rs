//! Commands in a VM: the reply when it has ended, or its output as it comes.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::body::{Body as RawBody, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use futures::{Stream, StreamExt as _};
use hearth_api::error::ErrorCode;
use hearth_api::exec::{ExecExit, ExecReply, ExecRequest, UNFINISHED_HEADER};
use hearth_api::ids::InstanceId;
use hearth_api::instance::InstanceStatus;
use hearth_api::token::Scope;
use hearth_api::values::{GuestPath, Name};
use hearth_core::scripts::shell_text;
use hearth_core::state::InstanceState;
use hearth_guest::ExecSpec;
use hearth_guest::client::{AgentClient, AgentError, ExecStream, Upload};
use jiff::Timestamp;

use super::AppState;
use super::auth::Caller;
use super::claims::own_claim;
use super::error::ApiError;
use super::exec_end::{Heard, StartedExec};
use super::extract::{Body, Path};
use super::validate::Faults;
use crate::secrets::env_file;
use crate::store::{InstanceRow, Store};
use crate::vms::pause::ResumedVm;
use crate::vms::probe::OutOfReach;

/// How long a VM's agent has to take the connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// An agent that is there says this soon that it has a command. One that does not may be busy, or not there.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);
/// What a JSON reply keeps of each output, bytes.
const KEPT_BYTES: usize = 8 * 1024 * 1024;
/// A silent command says that it is still there, so that proxies keep the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Run a command in a VM
///
/// With `Accept: text/event-stream` its output comes as it is printed: events `stdout` and `stderr` with base64 data and at
/// last `exit` with an `ExecExit`. Otherwise one reply when it has ended. Give either `command` or `argv`.
///
/// However the command ended, the answer is 200 and says it: a command whose time was up has `timedOut` and all it had printed; a
/// program that is not there has the exit code 127, and one that cannot be run as asked (not executable, no such user or folder)
/// 126, with a message in `error`; when the agent or the VM died meanwhile there is neither code nor signal, and `error` says what
/// happened. Such a command may have done its work: check before it is sent again.
#[utoipa::path(
    post,
    path = "/instances/{id}/exec",
    tag = "claims",
    request_body = ExecRequest,
    responses((status = 200, content((ExecReply = "application/json"), (String = "text/event-stream")), description = "How it ended"), (status = 409, description = "refused"), (status = 410, description = "refused"))
)]
pub async fn exec_in_instance(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
    headers: HeaderMap,
    Body(body): Body<ExecRequest>,
) -> Result<Response, ApiError> {
    let row = usable(&state, &caller, &id).await?;
    let stdin = body.stdin.clone().unwrap_or_default();
    let spec = to_spec(body)?;
    let Inside { agent, resumed } = enter(&state, &row).await?;
    let started = StartedExec::now(&state, &row, &spec).await;
    let running = answered(&state, &row, agent.exec(&spec, Upload::from(stdin))).await?;
    let streaming = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("text/event-stream"));
    let running = match running {
        Ok(running) => running,
        Err(error @ AgentError::Refused { .. }) => return Err(refused(&error)),
        // It may have begun.
        Err(error) => {
            let exit = started.lost(&error).await;
            return Ok(if streaming {
                ended_response(exit)
            } else {
                Json(ExecReply::new(exit, Vec::new(), Vec::new(), false)).into_response()
            });
        }
    };
    let response = if streaming {
        stream(running, started, resumed)
    } else {
        let reply = collect(running, &started).await;
        drop(resumed);
        Json(reply).into_response()
    };
    Ok(marked(row.state, response))
}

/// A client that works in a VM which is still being made learns of it without asking.
pub fn marked(state: InstanceState, mut response: Response) -> Response {
    if state == InstanceState::Provisioning {
        let value = HeaderValue::from_static("true");
        response.headers_mut().insert(UNFINISHED_HEADER, value);
    }
    response
}

/// Someone is at work in a VM.
pub struct Inside {
    pub agent: AgentClient,
    /// A VM of the pool is paused, and a claimed one may be by its owner; it runs for as long as this is held.
    pub resumed: Option<ResumedVm>,
}

impl Inside {
    /// A reply's body of what the VM sends. A VM of the pool runs for as long as a client reads it.
    pub fn body(
        resumed: Option<ResumedVm>,
        bytes: impl Stream<Item = Result<Bytes, AgentError>> + Send + 'static,
    ) -> RawBody {
        RawBody::from_stream(bytes.map(move |chunk| {
            let _ = &resumed;
            chunk.map_err(std::io::Error::other)
        }))
    }
}

/// Begins work in an instance's VM, which is a sign of life of its owner. A claimed one that is paused is resumed, and stays so.
pub async fn enter(state: &AppState, row: &InstanceRow) -> Result<Inside, ApiError> {
    let inside = reach(state, row).await?;
    if row.state == InstanceState::Claimed {
        // The work need not wait until it is written.
        tokio::spawn(show_life(state.store().clone(), row.id.clone()));
    }
    Ok(inside)
}

/// The same for somebody else, whose doings keep no lease.
pub async fn reach(state: &AppState, row: &InstanceRow) -> Result<Inside, ApiError> {
    let (mut resumed, mut was_paused) = (None, false);
    if row.state == InstanceState::Claimed {
        let entered = state.pause.enter_claimed(&row.vm).await;
        let (call, paused) = entered.map_err(|error| ApiError::unavailable(error.to_string()))?;
        (resumed, was_paused) = (Some(call), paused);
    }
    // A working connection says more than the host can, and checking it costs nothing.
    let is_connected = state.connections.current(&row.vm).is_some();
    if !is_connected || state.probes.unresponsive(&row.vm).is_some() {
        need_in_reach(state, row).await?;
    }
    if row.state != InstanceState::Claimed && !row.worked_in {
        // Before anything can be changed: from now on what is in the VM is not only the set-up's.
        state.store().note_work(&row.id).await?;
    }
    if row.state == InstanceState::Ready {
        let kept = state.pause.keep_resumed(&row.vm).await;
        resumed = Some(kept.map_err(|error| ApiError::unavailable(error.to_string()))?);
    }
    if was_paused {
        // It did not advance meanwhile.
        state.probes.set_clock(row).await;
        state.pause.clock_is_set(&row.vm);
    }
    let agent = state.connections.get(&row.vm, CONNECT_PATIENCE).await;
    let agent = match agent {
        Err(error) if row.state == InstanceState::Provisioning => {
            let why = format!("the VM of this instance is still being made and cannot be entered yet: {error}");
            return Err(ApiError::new(ErrorCode::Conflict, why));
        }
        agent => agent?,
    };
    state.probes.meet(row, &agent).await?;
    state.probes.expect_answer(&row.vm);
    Ok(Inside { agent, resumed })
}

/// Refuses what asks for a VM that cannot be reached.
pub async fn need_in_reach(state: &AppState, row: &InstanceRow) -> Result<(), ApiError> {
    match state.probes.out_of_reach(row).await {
        // Nobody need ask again.
        Some(OutOfReach::Ended(why)) => Err(ApiError::new(ErrorCode::Conflict, why)),
        Some(OutOfReach::Silent(why)) => Err(ApiError::unavailable(why)),
        None => Ok(()),
    }
}

/// What the agent answers at first. When it says nothing for some seconds, or its connection is lost, the host is asked whether
/// there is anybody to wait for.
pub async fn answered<T>(
    state: &AppState,
    row: &InstanceRow,
    asked: impl Future<Output = Result<T, AgentError>>,
) -> Result<Result<T, AgentError>, ApiError> {
    let mut asked = std::pin::pin!(asked);
    let soon = tokio::time::timeout(ANSWER_PATIENCE, &mut asked).await;
    if let Ok(answer @ (Ok(_) | Err(AgentError::Refused { .. }))) = soon {
        return Ok(answer);
    }
    need_in_reach(state, row).await?;
    match soon {
        Ok(answer) => Ok(answer),
        Err(_) => Ok(asked.await),
    }
}

/// Work is a sign of life: it renews the lease.
pub async fn show_life(store: Store, id: InstanceId) {
    if let Err(error) = store.renew_lease(&id, Timestamp::now()).await {
        tracing::warn!(%error, instance = %id, "a lease could not be renewed");
    }
}

/// Whether this caller may work in this instance: its own claim, or anything with a VM for an admin.
pub async fn usable(state: &AppState, caller: &Caller, id: &InstanceId) -> Result<InstanceRow, ApiError> {
    if !caller.has(Scope::Admin) {
        return own_claim(state, caller, id).await;
    }
    let row = caller.instance(state, id, Scope::Admin).await?;
    match row.state {
        // One that is being made is looked into when its set-up hangs, say.
        InstanceState::Ready | InstanceState::Claimed | InstanceState::Failed | InstanceState::Provisioning => Ok(row),
        _ => {
            let what = match row.status() {
                Some(InstanceStatus::Failed) => "this failed instance",
                _ => "this instance",
            };
            let when = row
                .vm_ended
                .map(|(at, why)| format!(" at {at:.0} ({why})"))
                .unwrap_or_default();
            let why = format!("the VM of {what} was removed{when}; its record is what is left");
            Err(ApiError::new(ErrorCode::Gone, why))
        }
    }
}

pub fn to_spec(body: ExecRequest) -> Result<ExecSpec, ApiError> {
    let mut faults = Faults::default();
    let names = body.env.iter().flat_map(BTreeMap::keys);
    faults.variable_names(names.map(|name| (format!("env.{name}"), name.as_str())));
    faults.finish()?;
    // `bash -c`, as documented: not the stricter shell of the set-up commands.
    let argv = match (body.command, body.argv) {
        (Some(command), None) => vec!["bash".to_owned(), "-c".to_owned(), shell_text(&command)],
        (None, Some(argv)) if argv.first().is_some_and(|program| !program.is_empty()) => {
            argv.into_iter().map(String::from).collect()
        }
        (None, Some(_)) => return Err(ApiError::field("argv[0]", "must name a program")),
        _ => return Err(ApiError::field(".", "give either `command` or `argv`")),
    };
    let pairs = body.env.into_iter().flatten();
    Ok(ExecSpec {
        env: pairs.map(|(name, value)| (name.into(), value.into())).collect(),
        timeout_ms: body.timeout_seconds.map(|seconds| seconds * 1000),
        ..spec_of(argv, body.cwd, body.user)
    })
}

/// How these words are run for a client: in `/home` and as root unless it says otherwise, with the variables of the VM.
pub fn spec_of(argv: Vec<String>, cwd: Option<GuestPath>, user: Option<Name>) -> ExecSpec {
    ExecSpec {
        argv: Some(argv),
        cwd: Some(cwd.map_or_else(|| "/home".to_owned(), String::from)),
        env_file: Some(env_file::PATH.to_owned()),
        user: user.map(String::from),
        ..ExecSpec::default()
    }
}

pub fn refused(error: &AgentError) -> ApiError {
    ApiError::unavailable(error.to_string())
}

async fn collect(mut running: ExecStream, started: &StartedExec) -> ExecReply {
    let mut kept = Kept::default();
    let exit = loop {
        match started.heard(running.next().await).await {
            Heard::Stdout(chunk) => kept.keep(Kept::stdout, &chunk),
            Heard::Stderr(chunk) => kept.keep(Kept::stderr, &chunk),
            Heard::Exit(exit) => break exit,
        }
    };
    ExecReply::new(exit, kept.stdout, kept.stderr, kept.truncated)
}

/// The beginning of what a command printed.
#[derive(Default)]
struct Kept {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    truncated: bool,
}

impl Kept {
    fn stdout(&mut self) -> &mut Vec<u8> {
        &mut self.stdout
    }

    fn stderr(&mut self) -> &mut Vec<u8> {
        &mut self.stderr
    }

    fn keep(&mut self, of: fn(&mut Self) -> &mut Vec<u8>, chunk: &[u8]) {
        let kept = of(self);
        let room = KEPT_BYTES.saturating_sub(kept.len()).min(chunk.len());
        kept.extend_from_slice(&chunk[..room]);
        self.truncated |= room < chunk.len();
    }
}

fn stream(mut running: ExecStream, started: StartedExec, resumed: Option<ResumedVm>) -> Response {
    let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let events = async_stream::stream! {
        let exit = loop {
            match started.heard(running.next().await).await {
                Heard::Stdout(bytes) => yield Ok::<_, Infallible>(Event::default().event("stdout").data(encode(&bytes))),
                Heard::Stderr(bytes) => yield Ok(Event::default().event("stderr").data(encode(&bytes))),
                Heard::Exit(exit) => break exit,
            }
        };
        drop(resumed);
        yield Ok(Event::default().event("exit").json_data(&exit).unwrap_or_default());
    };
    Sse::new(events)
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response()
}

fn ended_response(exit: ExecExit) -> Response {
    let event = Event::default().event("exit").json_data(&exit).unwrap_or_default();
    Sse::new(futures::stream::iter([Ok::<_, Infallible>(event)])).into_response()
}
