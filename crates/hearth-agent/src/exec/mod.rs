//! Running commands. [`plan`] decides what exactly is started, [`launch`] starts it as a [`launcher`] that becomes it, which may
//! have waited among the [`pre_started`]; [`process_tree`] knows and ends everything it started, [`attached`] and [`detached`] are
//! its life with and without a caller, [`terminal`] the one in a terminal. [`sessions`] are kept without one;
//! [`processes`] are all of the VM.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hearth_guest::frames::{self, FrameDecoder, FrameError};
use hearth_guest::{ExecEnd, ExecSpec, FrameKind, TerminalSpec};
use http::Request;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::logs::Logs;
use crate::reply::{self, Fault, Reply};

mod attached;
mod cgroup;
mod detached;
mod env_file;
mod launch;
pub(crate) mod launcher;
mod memory;
mod not_started;
mod plan;
mod pre_started;
mod process_tree;
pub(crate) mod processes;
mod server;
pub(crate) mod sessions;
mod terminal;

use cgroup::Cgroups;
use env_file::EnvFiles;
use launch::Started;
use launcher::Order;
use not_started::NotStarted;
use plan::Plan;
use pre_started::PreStarted;
use sessions::Sessions;

/// Frames of output that wait for the host; when it does not read, the command is held back by its full pipe.
const WAITING_FRAMES: usize = 4;

/// What all commands share.
#[derive(Debug)]
pub(crate) struct Execs {
    /// When this agent was.
    pub(crate) started: Instant,
    cgroups: Cgroups,
    env_files: EnvFiles,
    /// What commands print that have ended.
    pub(crate) logs: Arc<Logs>,
    pub(crate) sessions: Sessions,
    pre_started: PreStarted,
    tasks: TaskTracker,
}

impl Execs {
    pub(crate) fn new(use_cgroups: bool, log_folder: PathBuf) -> Self {
        let cgroups = if use_cgroups { Cgroups::find() } else { Cgroups::none() };
        Self {
            started: Instant::now(),
            cgroups,
            env_files: EnvFiles::default(),
            logs: Arc::new(Logs::find(log_folder)),
            sessions: Sessions::default(),
            pre_started: PreStarted::new(),
            tasks: TaskTracker::new(),
        }
    }

    async fn plan(&self, spec: &ExecSpec) -> Result<Plan, NotStarted> {
        let variables = match &spec.env_file {
            Some(file) => self.env_files.read(file).await.map_err(NotStarted::not_run)?,
            None => Arc::default(),
        };
        Plan::new(spec, &variables).map_err(NotStarted::not_run)
    }

    /// Starts a command.
    async fn start(&self, order: Order) -> Result<Started, NotStarted> {
        let launcher = self.pre_started.take(&self.cgroups)?;
        launcher.become_command(&self.cgroups, order).await
    }

    /// Prepares for the next commands whenever there is nothing else to do.
    pub(crate) async fn keep_pre_started(&self) {
        self.pre_started.keep(&self.cgroups).await;
    }

    /// Prepares for the next commands at once: the VM is about to be frozen.
    pub(crate) async fn quiesce(&self) {
        self.pre_started.quiesce(&self.cgroups).await;
    }

    /// Ends the sessions, and waits until no attached command runs any more, nor anything that waits for one.
    pub(crate) async fn all_ended(&self) {
        self.sessions.end_all().await;
        self.tasks.close();
        self.tasks.wait().await;
        self.pre_started.end(&self.cgroups).await;
    }
}

/// The request's body as frames.
#[derive(Debug)]
struct Input {
    body: Incoming,
    decoder: FrameDecoder,
}

impl Input {
    /// The next frame; `None` at the end of the body or when the host is gone (which the output notices on its own).
    async fn next(&mut self) -> Result<Option<(FrameKind, Bytes)>, FrameError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(Some(frame));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.decoder.feed(data);
                    }
                }
                Some(Err(_)) => return Ok(None),
                None => {
                    self.decoder.finish()?;
                    return Ok(None);
                }
            }
        }
    }
}

/// The reply's body.
#[derive(Debug, Clone)]
struct Output(mpsc::Sender<std::io::Result<Bytes>>);

impl Output {
    /// Passes on what the command printed; false when the caller is gone.
    async fn send(&self, kind: FrameKind, payload: &[u8]) -> bool {
        self.send_frame(frames::encode(kind, payload)).await
    }

    async fn send_frame(&self, frame: Bytes) -> bool {
        self.0.send(Ok(frame)).await.is_ok()
    }

    async fn end(self, end: ExecEnd) {
        if let Ok(frame) = frames::encode_json(FrameKind::End, &end) {
            // When this fails, the host does not listen any more.
            drop(self.0.send(Ok(frame)).await);
        }
    }

    async fn caller_gone(&self) {
        self.0.closed().await;
    }
}

/// Serves one exec: reads the specification, answers at once, and continues in a task of its own.
pub(crate) async fn run(
    request: Request<Incoming>,
    execs: Arc<Execs>,
    session: CancellationToken,
) -> Result<Reply, Fault> {
    let (spec, input): (ExecSpec, _) = begin(request).await?;
    let (output, reply) = output();
    let tasks = execs.tasks.clone();
    tasks.spawn(async move {
        match execs.plan(&spec).await {
            Err(fault) => output.end(fault.into()).await,
            Ok(plan) => match spec.detach {
                None => attached::run(&execs, plan, spec.timeout_ms, input, output, session).await,
                Some(detach) => detached::run(execs, plan, spec.timeout_ms, detach, output).await,
            },
        }
    });
    Ok(reply)
}

/// The same in a terminal.
pub(crate) async fn run_in_terminal(
    request: Request<Incoming>,
    execs: Arc<Execs>,
    session: CancellationToken,
) -> Result<Reply, Fault> {
    let (spec, input): (TerminalSpec, _) = begin(request).await?;
    let (output, reply) = output();
    let tasks = execs.tasks.clone();
    tasks.spawn(async move {
        match execs.plan(&spec.command).await {
            Err(fault) => output.end(fault.into()).await,
            Ok(plan) => terminal::run(&execs, plan, &spec, input, output, session).await,
        }
    });
    Ok(reply)
}

/// The specification, and what follows it.
async fn begin<T: DeserializeOwned>(request: Request<Incoming>) -> Result<(T, Input), Fault> {
    let mut input = Input {
        body: request.into_body(),
        decoder: FrameDecoder::default(),
    };
    let first = input.next().await.map_err(|error| Fault::bad(error.to_string()))?;
    let Some((FrameKind::Spec, payload)) = first else {
        return Err(Fault::bad("the body must start with the specification of the command"));
    };
    let spec = frames::decode_json(&payload).map_err(|error| Fault::bad(error.to_string()))?;
    Ok((spec, input))
}

fn output() -> (Output, Reply) {
    let (sender, mut receiver) = mpsc::channel(WAITING_FRAMES);
    let chunks = futures::stream::poll_fn(move |cx| receiver.poll_recv(cx));
    (Output(sender), reply::stream(chunks))
}

fn millis_since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn exited(status: std::process::ExitStatus, start: Instant) -> ExecEnd {
    use std::os::unix::process::ExitStatusExt;
    ExecEnd::Exited {
        code: status.code(),
        signal: status.signal(),
        duration_ms: millis_since(start),
        log: None,
        out_of_memory: None,
    }
}

/// Sleeps until a command's time is up; for ever when it has no limit.
async fn time_is_up(start: Instant, timeout_ms: Option<u64>) {
    match timeout_ms.and_then(|limit| start.checked_add(Duration::from_millis(limit))) {
        Some(end) => tokio::time::sleep_until(end.into()).await,
        None => std::future::pending().await,
    }
}
