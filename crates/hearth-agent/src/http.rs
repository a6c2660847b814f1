//! The routes: which path and method is served by what. One HTTP/2 connection per session.

use std::convert::Infallible;
use std::fs;
use std::sync::Arc;
use std::time::Instant;

use hearth_guest::session::{CONNECTION_WINDOW, STREAM_WINDOW, SessionStream};
use hearth_guest::{HandOver, Health, PROTOCOL_VERSION, SetClock, paths};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::exec::{self, Execs};
use crate::reply::{self, Fault, Reply};
use crate::{activate, clock, files, fs as user_files, logs, ports, requests, ssh, tree};

/// Requests at a time; far more than any host has reason for.
const MAX_STREAMS: u32 = 1024;

/// A host that drops many commands at once resets many streams at once, which HTTP/2 servers take for an attack.
const MAX_RESETS: usize = 4096;

/// Room for a long path in a request's target.
const MAX_HEADERS: u32 = 64 * 1024;

/// What may wait in one reply for the host to take it.
const MAX_SEND_BUFFER: usize = 64 * 1024;

/// Longest body of a request that holds JSON only.
const SMALL_BODY: usize = 64 * 1024;

/// Serves one session to its end.
pub(crate) async fn serve(session: SessionStream, execs: Arc<Execs>, alive: CancellationToken) {
    let service = service_fn(move |request| {
        let (execs, alive) = (Arc::clone(&execs), alive.clone());
        async move { Ok::<_, Infallible>(answer(request, execs, alive).await.unwrap_or_else(Fault::into_reply)) }
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(MAX_RESETS)
        .max_header_list_size(MAX_HEADERS)
        .max_send_buf_size(MAX_SEND_BUFFER);
    // However it ended, the host learns it from the session's end.
    drop(builder.serve_connection(TokioIo::new(session), service).await);
}

async fn answer(request: Request<Incoming>, execs: Arc<Execs>, alive: CancellationToken) -> Result<Reply, Fault> {
    let path = request.uri().path();
    let method = request.method();
    match (path, method) {
        (paths::HEALTH, &Method::GET) => health(execs.started),
        (paths::EXEC, &Method::POST) => exec::run(request, execs, alive).await,
        (paths::TERMINAL, &Method::POST) => exec::run_in_terminal(request, execs, alive).await,
        (paths::FILES, &Method::PUT) => files::write(request).await,
        (paths::FILES, &Method::GET) => files::read(request).await,
        (paths::TREE, &Method::PUT) => tree::write(request).await,
        (path, _) if path.starts_with(paths::FS) => user_files::answer(request).await,
        (path, _) if path == paths::SESSIONS || path.starts_with(paths::SESSION_PREFIX) => {
            exec::sessions::answer(request, execs, alive).await
        }
        (paths::PROCESSES, &Method::GET) => exec::processes::list(execs).await,
        (paths::CLOCK, &Method::POST) => set_clock(request).await,
        (paths::HAND_OVER, &Method::POST) => hand_over(request).await,
        (paths::ACTIVATE, &Method::POST) => activate::run(request).await,
        (paths::LOGS, &Method::GET) => logs::list(Arc::clone(&execs.logs)).await,
        (paths::LOG, &Method::GET) => logs::read(request, &execs.logs, alive).await,
        (paths::RSA_HOST_KEY, &Method::POST) => activate::set_rsa_host_key(request).await,
        (paths::GUEST_REQUESTS, &Method::GET) => Ok(requests::read()),
        (paths::GUEST_REQUESTS, &Method::POST) => requests::answer(request).await,
        (paths::QUIESCE, &Method::POST) => {
            execs.quiesce().await;
            Ok(reply::done())
        }
        (paths::PORTS, &Method::GET) => ports::list().await,
        (paths::PORT_STREAM, &Method::POST) => ports::stream(request, &alive).await,
        (paths::SSH_KEYS, &Method::POST) => ssh::allow(request).await,
        (paths::SSH, &Method::POST) => ssh::serve(request, execs, &alive).await,
        (
            paths::HEALTH
            | paths::EXEC
            | paths::TERMINAL
            | paths::FILES
            | paths::TREE
            | paths::CLOCK
            | paths::HAND_OVER
            | paths::LOGS
            | paths::LOG
            | paths::ACTIVATE
            | paths::RSA_HOST_KEY
            | paths::QUIESCE
            | paths::PORTS
            | paths::PORT_STREAM
            | paths::SSH_KEYS
            | paths::SSH
            | paths::GUEST_REQUESTS,
            method,
        ) => Err(Fault {
            code: None,
            status: StatusCode::METHOD_NOT_ALLOWED,
            message: format!("{path} does not know the method {method}"),
        }),
        _ => Err(Fault::unknown(path)),
    }
}

fn health(started: Instant) -> Result<Reply, Fault> {
    let read = |path: &str| fs::read_to_string(path).map_err(|error| Fault::from_io(path, &error));
    let uptime = read("/proc/uptime")?;
    let seconds: f64 = uptime
        .split(' ')
        .next()
        .and_then(|first| first.parse().ok())
        .unwrap_or_default();
    let health = Health {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: PROTOCOL_VERSION,
        boot_id: read("/proc/sys/kernel/random/boot_id")?.trim_end().to_owned(),
        uptime_ms: std::time::Duration::try_from_secs_f64(seconds)
            .ok()
            .and_then(|uptime| u64::try_from(uptime.as_millis()).ok())
            .unwrap_or_default(),
        agent_uptime_ms: u64::try_from(started.elapsed().as_millis()).ok(),
    };
    Ok(reply::json(StatusCode::OK, &health))
}

/// A body that holds JSON only.
pub(crate) async fn small_json<T: DeserializeOwned>(request: Request<Incoming>, what: &str) -> Result<T, Fault> {
    json_up_to(request, SMALL_BODY, what).await
}

/// The same, of another length.
pub(crate) async fn json_up_to<T: DeserializeOwned>(
    request: Request<Incoming>,
    most: usize,
    what: &str,
) -> Result<T, Fault> {
    let body = Limited::new(request.into_body(), most).collect().await;
    let body = body
        .map_err(|error| Fault::bad(format!("the body could not be read: {error}")))?
        .to_bytes();
    serde_json::from_slice(&body).map_err(|error| Fault::bad(format!("the body is not {what}: {error}")))
}

/// In this thread: in a VM that has just been resumed a new one takes longer than the writes.
async fn hand_over(request: Request<Incoming>) -> Result<Reply, Fault> {
    let HandOver { unix_nanos, files } = small_json(request, "a hand-over").await?;
    clock::set(unix_nanos).map_err(|error| Fault::from_io("the clock could not be set", &error.into()))?;
    files.iter().try_for_each(files::write_short)?;
    Ok(reply::done())
}

async fn set_clock(request: Request<Incoming>) -> Result<Reply, Fault> {
    let SetClock { unix_nanos } = small_json(request, "a clock").await?;
    clock::set(unix_nanos).map_err(|error| Fault::from_io("the clock could not be set", &error.into()))?;
    Ok(reply::done())
}
