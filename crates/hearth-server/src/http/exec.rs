//! Commands in a VM: the reply when it has ended, or its output as it comes.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use futures::StreamExt as _;
use hearth_api::error::ErrorCode;
use hearth_api::exec::{ExecExit, ExecReply, ExecRequest};
use hearth_api::ids::InstanceId;
use hearth_api::instance::InstanceStatus;
use hearth_api::token::Scope;
use hearth_core::state::InstanceState;
use hearth_guest::ExecSpec;
use hearth_guest::client::{AgentClient, AgentError, ExecEvent, ExecStream, Upload};
use jiff::Timestamp;

use super::AppState;
use super::auth::Caller;
use super::claims::own_claim;
use super::error::ApiError;
use super::exec_end::Begun;
use super::extract::{Body, Path};
use super::validate::Faults;
use crate::provision::envfile;
use crate::provision::scripts::shell_text;
use crate::reconcile::Awake;
use crate::store::{InstanceRow, Store};

/// How long a VM's agent has to take the connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
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
/// 126, with a sentence in `error`; when the agent or the VM died meanwhile there is neither code nor signal, and `error` says what
/// happened. Such a command may have done its work: look before it is sent again.
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
    let Inside { agent, awake } = enter(&state, &row).await?;
    let begun = Begun::now(&state, &row, &spec);
    let started = agent.exec(&spec, Upload::from(stdin)).await;
    let streaming = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("text/event-stream"));
    let running = match started {
        Ok(running) => running,
        Err(error @ AgentError::Refused { .. }) => return Err(refused(&error)),
        // It may have begun.
        Err(error) => {
            let exit = begun.lost(&error).await;
            return Ok(if streaming {
                told_at_once(exit)
            } else {
                Json(ExecReply::new(exit, Vec::new(), Vec::new(), false)).into_response()
            });
        }
    };
    if streaming {
        return Ok(stream(running, begun, awake));
    }
    let reply = collect(running, &begun).await;
    drop(awake);
    Ok(Json(reply).into_response())
}

/// Someone is at work in a VM.
pub struct Inside {
    pub agent: AgentClient,
    /// A VM of the pool stands still; it goes on for as long as this is held.
    pub awake: Option<Awake>,
}

/// Begins work in an instance's VM.
pub async fn enter(state: &AppState, row: &InstanceRow) -> Result<Inside, ApiError> {
    if let Some(why) = state.reconciler.out_of_reach(row).await {
        return Err(ApiError::unavailable(why));
    }
    if row.state != InstanceState::Claimed && !row.worked_in {
        // Before anything can be changed: from now on what is in the VM is not only the set-up's.
        state.store().note_work(&row.id).await?;
    }
    let awake = if row.state == InstanceState::Ready {
        let awake = state.reconciler.keep_awake(&row.vm).await;
        Some(awake.map_err(|error| ApiError::unavailable(error.to_string()))?)
    } else {
        None
    };
    let agent = state.reconciler.context().agents.get(&row.vm, CONNECT_PATIENCE).await;
    let agent = match agent {
        Err(error) if row.state == InstanceState::Provisioning => {
            let why = format!("the VM of this instance is still being made and cannot be entered yet: {error}");
            return Err(ApiError::new(ErrorCode::Conflict, why));
        }
        agent => agent?,
    };
    state.reconciler.meet(row, &agent).await?;
    state.reconciler.expect_answer(&row.vm);
    if row.state == InstanceState::Claimed {
        // The work need not wait until it is written.
        tokio::spawn(show_life(state.store().clone(), row.id.clone()));
    }
    Ok(Inside { agent, awake })
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
        (None, Some(argv)) if argv.first().is_some_and(|program| !program.is_empty()) => argv,
        (None, Some(_)) => return Err(ApiError::field("argv[0]", "must name a program")),
        _ => return Err(ApiError::field(".", "give either `command` or `argv`")),
    };
    Ok(ExecSpec {
        argv: Some(argv),
        cwd: Some(body.cwd.unwrap_or_else(|| "/home".to_owned())),
        env: body.env.unwrap_or_default().into_iter().collect(),
        env_file: Some(envfile::PATH.to_owned()),
        user: body.user,
        timeout_ms: body.timeout_seconds.map(|seconds| seconds * 1000),
        ..ExecSpec::default()
    })
}

pub fn refused(error: &AgentError) -> ApiError {
    ApiError::unavailable(error.to_string())
}

async fn collect(mut running: ExecStream, begun: &Begun) -> ExecReply {
    let mut kept = Kept::default();
    let exit = loop {
        match running.next().await {
            Some(Ok(ExecEvent::Stdout(piece))) => kept.keep(Kept::stdout, &piece),
            Some(Ok(ExecEvent::Stderr(piece))) => kept.keep(Kept::stderr, &piece),
            Some(Ok(ExecEvent::End(end))) => break begun.exit(&end),
            Some(Err(error)) => break begun.lost(&error).await,
            None => break begun.lost(&silent()).await,
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

    fn keep(&mut self, of: fn(&mut Self) -> &mut Vec<u8>, piece: &[u8]) {
        let kept = of(self);
        let room = KEPT_BYTES.saturating_sub(kept.len()).min(piece.len());
        kept.extend_from_slice(&piece[..room]);
        self.truncated |= room < piece.len();
    }
}

/// A stream that ends without an end, which an [`ExecStream`] never does.
pub fn silent() -> AgentError {
    AgentError::Protocol("the output ended without saying how the command did".to_owned())
}

fn stream(mut running: ExecStream, begun: Begun, awake: Option<Awake>) -> Response {
    let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let events = async_stream::stream! {
        let exit = loop {
            match running.next().await {
                Some(Ok(ExecEvent::Stdout(bytes))) => yield Ok::<_, Infallible>(Event::default().event("stdout").data(encode(&bytes))),
                Some(Ok(ExecEvent::Stderr(bytes))) => yield Ok(Event::default().event("stderr").data(encode(&bytes))),
                Some(Ok(ExecEvent::End(end))) => break begun.exit(&end),
                Some(Err(error)) => break begun.lost(&error).await,
                None => break begun.lost(&silent()).await,
            }
        };
        drop(awake);
        yield Ok(Event::default().event("exit").json_data(&exit).unwrap_or_default());
    };
    Sse::new(events)
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response()
}

fn told_at_once(exit: ExecExit) -> Response {
    let event = Event::default().event("exit").json_data(&exit).unwrap_or_default();
    Sse::new(futures::stream::iter([Ok::<_, Infallible>(event)])).into_response()
}
