//! The agent of a fake VM: the real protocol (session, HTTP/2, frames) over a pipe in memory, with nothing behind it but a
//! map of files and a list of rules. It runs no command.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hearth_guest::TerminalSize;
use hearth_guest::frames::{self, FrameDecoder};
use hearth_guest::session::{SessionStream, serve_sessions};
use hearth_guest::{
    Activate, Activated, AgentFault, ExecEnd, ExecSpec, FrameKind, HandOver, Health, HostKey, LogEntry, LogKind,
    LogList, PROTOCOL_VERSION, SetClock, TerminalSpec, paths,
};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, watch};

use super::lateness::Lateness;
use super::ports::Ports;
use super::questions::Questions;
use super::script::{ExecRule, Special};
use super::{files, sessions};

/// The process id of every detached command: it says "some process", no more.
const DETACHED_PID: u32 = 4711;
/// The first line of every kernel.
const BOOT_LINE: &str = "[    0.000000] Linux version 0.0.0-fake";
/// What ends a command whose time has passed.
const SIGTERM: i32 = 15;

/// A guest that has this file has an SSH server with such a key.
const RSA_HOST_KEY: &str = "/etc/ssh/ssh_host_rsa_key";

pub(super) type Reply = Response<UnsyncBoxBody<Bytes, io::Error>>;
pub(super) type Refusal = (StatusCode, String);

/// One fake guest: what it holds, and what was asked of it.
#[derive(Debug)]
pub(super) struct Guest {
    boot_id: Mutex<String>,
    rules: Arc<Mutex<Vec<ExecRule>>>,
    inside: Mutex<Inside>,
    pub(super) questions: Questions,
    /// True while nothing in it answers, though it runs.
    hangs: watch::Sender<bool>,
    /// What its kernels have written to the console since the first one booted.
    console: Mutex<String>,
    lateness: Lateness,
    ports: Ports,
    /// False while the VM is paused: requests then wait.
    runs: watch::Sender<bool>,
    started: Mutex<tokio::time::Instant>,
    /// When this agent began, which may have died before: every change ends its connections.
    agent_started: watch::Sender<tokio::time::Instant>,
    sessions: sessions::Sessions,
}

#[derive(Debug, Default)]
struct Inside {
    files: BTreeMap<String, Bytes>,
    /// What processes print that commands left running.
    logs: Vec<String>,
    commands: Vec<ExecSpec>,
    clock: Option<i64>,
    activated: Option<Activate>,
}

impl Guest {
    pub(super) fn new(boot_id: String, rules: Arc<Mutex<Vec<ExecRule>>>, lateness: Lateness, ports: Ports) -> Self {
        Self {
            lateness,
            ports,
            boot_id: Mutex::new(boot_id),
            hangs: watch::Sender::new(false),
            console: Mutex::default(),
            rules,
            inside: Mutex::default(),
            questions: Questions::default(),
            runs: watch::Sender::new(true),
            started: Mutex::new(tokio::time::Instant::now()),
            agent_started: watch::Sender::new(tokio::time::Instant::now()),
            sessions: sessions::Sessions::default(),
        }
    }

    /// Another guest that holds what this one holds now.
    pub(super) fn copy(&self, boot_id: String) -> Self {
        let copy = Self::new(
            boot_id,
            Arc::clone(&self.rules),
            self.lateness.clone(),
            self.ports.clone(),
        );
        copy.inside().files = self.inside().files.clone();
        copy.inside().commands = self.inside().commands.clone();
        Self {
            sessions: self.sessions.copy(),
            ..copy
        }
    }

    /// Lets it answer, or not.
    pub(super) fn set_running(&self, runs: bool) {
        self.runs.send_replace(runs);
    }

    /// Lets nothing in it answer, or lets it answer again.
    pub(super) fn set_hanging(&self, hangs: bool) {
        self.hangs.send_replace(hangs);
    }

    /// Waits until it does not hang.
    pub(super) async fn answers(&self) {
        // An error would mean that the sender, which is ours, is gone.
        drop(self.hangs.subscribe().wait_for(|hangs| !*hangs).await);
    }

    /// Its kernel writes a line.
    pub(super) fn say(&self, line: &str) {
        let mut console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        console.push_str(line);
        console.push('\n');
    }

    /// What its kernels have written.
    pub(super) fn console(&self) -> String {
        self.console.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Boots again.
    pub(super) fn reboot(&self) {
        self.say(BOOT_LINE);
        self.boot_id
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_str("-again");
        *self.started.lock().unwrap_or_else(PoisonError::into_inner) = tokio::time::Instant::now();
    }

    /// How long it runs since it booted.
    fn up(&self) -> Duration {
        self.started.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    fn boot_id(&self) -> String {
        self.boot_id.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// As whom it was last activated.
    pub(super) fn activated(&self) -> Option<Activate> {
        self.inside().activated.clone()
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every command so far, in the order of their arrival.
    pub(super) fn commands(&self) -> Vec<ExecSpec> {
        self.inside().commands.clone()
    }

    /// A file's bytes.
    pub(super) fn file(&self, path: &str) -> Option<Bytes> {
        self.inside().files.get(path).cloned()
    }

    /// All files.
    pub(super) fn files(&self) -> BTreeMap<String, Bytes> {
        self.inside().files.clone()
    }

    /// The clock as last set.
    pub(super) fn clock(&self) -> Option<i64> {
        self.inside().clock
    }

    /// Serves sessions on one stream until it ends.
    pub(super) async fn serve(self: Arc<Self>, stream: DuplexStream) {
        let (reader, writer) = tokio::io::split(stream);
        // However it ends, the other side sees the end of the stream.
        let agent_started = self.agent_started.clone();
        let serve = move |session| Arc::clone(&self).serve_session(session);
        let mut dies = agent_started.subscribe();
        tokio::select! {
            _ = serve_sessions(reader, writer, serve, async || Ok(false)) => {}
            _ = dies.changed() => {}
        }
    }

    async fn serve_session(self: Arc<Self>, session: SessionStream) {
        let service = service_fn(move |request| {
            let guest = Arc::clone(&self);
            async move { Ok::<_, Infallible>(guest.answer(request).await.unwrap_or_else(refuse)) }
        });
        let _ = http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(session), service)
            .await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Reply, Refusal> {
        // An error would mean that the sender, which is ours, is gone.
        drop(self.runs.subscribe().wait_for(|runs| *runs).await);
        self.answers().await;
        tokio::time::sleep(self.lateness.get()).await;
        match (request.uri().path(), request.method()) {
            (paths::HEALTH, &Method::GET) => Ok(json(StatusCode::OK, &self.health())),
            (paths::EXEC, &Method::POST) => self.exec(request).await,
            (paths::TERMINAL, &Method::POST) => self.terminal(request).await,
            (paths::FILES, &Method::PUT) => {
                let path = path_of(&request)?;
                let body = whole(request).await?;
                self.inside().files.insert(path, body);
                Ok(done())
            }
            (paths::FILES, &Method::GET) => {
                let path = path_of(&request)?;
                let file = self.file(&path);
                let bytes = file.ok_or_else(|| (StatusCode::NOT_FOUND, format!("{path}: there is no such file")))?;
                Ok(Response::new(full(bytes)))
            }
            (paths::TREE, &Method::PUT) => {
                let path = path_of(&request)?;
                let body = whole(request).await?;
                let files = files::unpack(&path, &body).map_err(|error| bad(&error))?;
                self.inside().files.extend(files);
                Ok(done())
            }
            (path, _) if path.starts_with(paths::FS) => {
                let asked = files::Asked::of(request).await?;
                Ok(asked.answer(&mut self.inside().files))
            }
            (path, _) if sessions::is_path(path) => self.sessions.answer(self, request).await,
            (paths::CLOCK, &Method::POST) => {
                let body = whole(request).await?;
                let clock: SetClock = serde_json::from_slice(&body).map_err(|error| bad(&error))?;
                self.inside().clock = Some(clock.unix_nanos);
                Ok(done())
            }
            (paths::HAND_OVER, &Method::POST) => {
                let body = whole(request).await?;
                let HandOver { unix_nanos, files } = serde_json::from_slice(&body).map_err(|error| bad(&error))?;
                let mut inside = self.inside();
                inside.clock = Some(unix_nanos);
                let files = files.into_iter().map(|file| (file.path, Bytes::from(file.text)));
                inside.files.extend(files);
                Ok(done())
            }
            (paths::LOGS, &Method::GET) => Ok(json(StatusCode::OK, &LogList { items: self.logs() })),
            (paths::LOG, &Method::GET) => {
                let name = query(&request, paths::NAME).unwrap_or_default();
                let text = self
                    .inside()
                    .logs
                    .iter()
                    .zip(1..)
                    .find(|(_, number)| log_name(*number) == name)
                    .map(|(text, _)| text.clone());
                let text = text.ok_or_else(|| (StatusCode::NOT_FOUND, format!("there is no log {name:?}")))?;
                Ok(Response::new(full(text.into())))
            }
            (paths::QUIESCE, &Method::POST) => Ok(done()),
            (path, _) if Ports::knows(path) => self.ports.answer(request).await,
            (paths::GUEST_REQUESTS, _) => self.questions.take(request).await,
            (paths::ACTIVATE, &Method::POST) => {
                let body = whole(request).await?;
                let wanted: Activate = serde_json::from_slice(&body).map_err(|error| bad(&error))?;
                let mut inside = self.inside();
                inside.clock = Some(wanted.unix_nanos);
                let activated = Activated {
                    agent_version: Some("fake".into()),
                    machine_id: wanted.machine_id.clone().unwrap_or_default(),
                    boot_id: self.boot_id(),
                    host_keys: wanted
                        .rsa_host_key
                        .iter()
                        .map(|_| "ssh_host_rsa_key".to_owned())
                        .collect(),
                    lacks_rsa_host_key: inside.files.contains_key(RSA_HOST_KEY) && wanted.rsa_host_key.is_none(),
                    closed_connections: 0,
                    duration_ms: 0,
                };
                inside.activated = Some(wanted);
                Ok(json(StatusCode::OK, &activated))
            }
            (paths::RSA_HOST_KEY, &Method::POST) => {
                let body = whole(request).await?;
                let key: HostKey = serde_json::from_slice(&body).map_err(|error| bad(&error))?;
                if let Some(activated) = &mut self.inside().activated {
                    activated.rsa_host_key = Some(key);
                }
                Ok(done())
            }
            (path, method) => Err((
                StatusCode::NOT_FOUND,
                format!("the fake agent does not know {method} {path}"),
            )),
        }
    }

    /// Installs an SSH server with an RSA host key.
    pub(super) fn install_ssh_server(&self) {
        self.inside().files.insert(
            RSA_HOST_KEY.to_owned(),
            Bytes::from_static(b"made when it was installed"),
        );
    }

    fn health(&self) -> Health {
        Health {
            version: "fake".into(),
            protocol: PROTOCOL_VERSION,
            boot_id: self.boot_id(),
            uptime_ms: millis(self.up()),
            agent_uptime_ms: Some(millis(self.agent_started.borrow().elapsed())),
        }
    }

    fn logs(&self) -> Vec<LogEntry> {
        let entry = |(text, number): (&String, usize)| LogEntry {
            name: log_name(number),
            kind: LogKind::Exec,
            command: Some("server &".into()),
            bytes: text.len() as u64,
            dropped_bytes: 0,
            open: Some(true),
            changed_unix_ms: Some(0),
        };
        self.inside().logs.iter().zip(1..).map(entry).collect()
    }

    /// The rule for a command, used up by one.
    fn rule(&self, spec: &ExecSpec) -> ExecRule {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(rule) = rules.iter_mut().find(|rule| rule.matches(spec)) else {
            return ExecRule::prints("", "");
        };
        rule.times = rule.times.map(|times| times.saturating_sub(1));
        rule.clone()
    }

    /// A command begins: it is noted, and this is its rule.
    pub(super) fn begin(&self, spec: &ExecSpec) -> ExecRule {
        self.inside().commands.push(spec.clone());
        self.rule(spec)
    }

    pub(super) fn agent_began(&self) -> tokio::time::Instant {
        *self.agent_started.borrow()
    }

    async fn exec(&self, request: Request<Incoming>) -> Result<Reply, Refusal> {
        let (spec, input): (ExecSpec, _) = Frames::begin(request).await?;
        let rule = self.begin(&spec);
        let (sender, reply) = stream();
        if rule.special == Special::Echo {
            tokio::spawn(cat(input, sender));
            return Ok(reply);
        }
        let mut left = None;
        if let Special::Leaves(text) = &rule.special {
            let mut inside = self.inside();
            inside.logs.push(text.clone());
            left = Some(log_name(inside.logs.len()));
        }
        let agent_started = self.agent_started.clone();
        tokio::spawn(async move {
            // Held: what it does not read is held back.
            let _input = input;
            if rule.special == Special::AgentDies {
                tokio::time::sleep(rule.takes).await;
                agent_started.send_replace(tokio::time::Instant::now());
                return;
            }
            if matches!(rule.special, Special::NeverEnds | Special::Computes) {
                let text = frames::encode(FrameKind::Stdout, rule.stdout.as_bytes());
                drop(sender.send(Ok(Frame::data(text))).await);
                return sender.closed().await;
            }
            for frame in play(&spec, &rule, left).await {
                if sender.send(Ok(Frame::data(frame))).await.is_err() {
                    return;
                }
            }
        });
        Ok(reply)
    }

    async fn terminal(&self, request: Request<Incoming>) -> Result<Reply, Refusal> {
        let (spec, input): (TerminalSpec, _) = Frames::begin(request).await?;
        self.inside().commands.push(spec.command.clone());
        let (sender, reply) = stream();
        tokio::spawn(echo(spec, input, sender));
        Ok(reply)
    }
}

pub(super) type Sender = mpsc::Sender<io::Result<Frame<Bytes>>>;

/// A reply whose body comes chunk by chunk.
pub(super) fn stream() -> (Sender, Reply) {
    let (sender, mut receiver) = mpsc::channel(4);
    let chunks = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
    (sender, Response::new(StreamBody::new(chunks).boxed_unsync()))
}

/// A terminal that shows what is typed and how large it is, and ends well at the end of the input's line that says `exit`.
async fn echo(spec: TerminalSpec, mut input: Frames, sender: Sender) {
    let show = |text: &[u8]| sender.send(Ok(Frame::data(frames::encode(FrameKind::Stdout, text))));
    let size = |size: TerminalSize| format!("{} x {}\r\n", size.rows, size.cols);
    let mut gone = show(size(spec.size).as_bytes()).await.is_err();
    while let (false, Ok(Some((kind, payload)))) = (gone, input.next().await) {
        if kind == FrameKind::Resize {
            let wanted = frames::decode_json(&payload).unwrap_or(spec.size);
            gone = show(size(wanted).as_bytes()).await.is_err();
        } else {
            gone = show(&payload).await.is_err();
        }
        if payload.ends_with(b"exit\r") {
            break;
        }
    }
    end_well(&sender).await;
}

/// A command that prints what it reads.
async fn cat(mut input: Frames, sender: Sender) {
    while let Ok(Some((FrameKind::Stdin, payload))) = input.next().await {
        let chunk = frames::encode(FrameKind::Stdout, &payload);
        if sender.send(Ok(Frame::data(chunk))).await.is_err() {
            return;
        }
    }
    end_well(&sender).await;
}

async fn end_well(sender: &Sender) {
    let end = ExecEnd::Exited {
        code: Some(0),
        signal: None,
        duration_ms: 0,
        log: None,
        out_of_memory: None,
    };
    if let Ok(end) = frames::encode_json(FrameKind::End, &end) {
        drop(sender.send(Ok(Frame::data(end))).await);
    }
}

/// What the command prints and how it ends, after the time it takes.
async fn play(spec: &ExecSpec, rule: &ExecRule, log: Option<String>) -> Vec<Bytes> {
    let limit = spec.timeout_ms.map(Duration::from_millis);
    let timed_out = limit.is_some_and(|limit| rule.takes > limit);
    let took = if timed_out {
        limit.unwrap_or_default()
    } else {
        rule.takes
    };
    // A detached command that keeps running is not waited for.
    let detached = spec.detach.is_some() && rule.code == 0;
    if !detached {
        tokio::time::sleep(took).await;
    }
    let end = match (&rule.special, detached, timed_out) {
        (Special::End(end), ..) => end.clone(),
        (_, true, _) => ExecEnd::Detached { pid: DETACHED_PID },
        (_, _, true) => ExecEnd::TimedOut {
            duration_ms: millis(took),
            code: None,
            signal: Some(SIGTERM),
        },
        _ => ExecEnd::Exited {
            code: Some(rule.code),
            signal: None,
            duration_ms: millis(took),
            log,
            out_of_memory: None,
        },
    };
    let bytes: &[u8] = match &rule.special {
        Special::Bytes(bytes) => bytes,
        _ => &[],
    };
    let texts = [
        (FrameKind::Stdout, rule.stdout.as_bytes()),
        (FrameKind::Stderr, rule.stderr.as_bytes()),
        (FrameKind::Stdout, bytes),
    ];
    let printed = texts.into_iter().filter(|(_, text)| !text.is_empty());
    let mut frames: Vec<Bytes> = printed.map(|(kind, text)| frames::encode(kind, text)).collect();
    frames.extend(frames::encode_json(FrameKind::End, &end));
    frames
}

/// A request's body.
pub(super) struct Frames {
    body: Incoming,
    decoder: FrameDecoder,
}

impl Frames {
    /// The specification, and what follows it.
    pub(super) async fn begin<T: DeserializeOwned>(request: Request<Incoming>) -> Result<(T, Self), Refusal> {
        let mut frames = Self {
            body: request.into_body(),
            decoder: FrameDecoder::default(),
        };
        let wrong = |what: &str| (StatusCode::BAD_REQUEST, what.to_owned());
        match frames.next().await? {
            Some((FrameKind::Spec, payload)) => {
                Ok((frames::decode_json(&payload).map_err(|error| bad(&error))?, frames))
            }
            Some(_) => Err(wrong("the body must start with the specification of the command")),
            None => Err(wrong("the body ended early")),
        }
    }

    pub(super) async fn next(&mut self) -> Result<Option<(FrameKind, Bytes)>, Refusal> {
        loop {
            if let Some(frame) = self.decoder.next_frame().map_err(|error| bad(&error))? {
                return Ok(Some(frame));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.decoder.feed(frame.data_ref().map_or(&[], |data| data)),
                _ => return Ok(None),
            }
        }
    }
}

pub(super) fn query(request: &Request<Incoming>, name: &str) -> Option<String> {
    let query = request.uri().query().unwrap_or_default();
    let found = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name);
    found.map(|(_, value)| value.into_owned())
}

pub(super) fn path_of(request: &Request<Incoming>) -> Result<String, Refusal> {
    query(request, paths::PATH).ok_or((StatusCode::BAD_REQUEST, "the path is missing".into()))
}

fn log_name(number: usize) -> String {
    format!("exec-{number}")
}

pub(super) async fn whole(request: Request<Incoming>) -> Result<Bytes, Refusal> {
    request
        .into_body()
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .map_err(|error| bad(&error))
}

pub(super) fn bad(error: &dyn std::error::Error) -> Refusal {
    (StatusCode::BAD_REQUEST, error.to_string())
}

fn refuse((status, message): Refusal) -> Reply {
    json(status, &AgentFault { message, code: None })
}

pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Reply {
    // Our own types always have a JSON form.
    let mut reply = Response::new(full(serde_json::to_vec(value).unwrap_or_default().into()));
    *reply.status_mut() = status;
    reply
}

pub(super) fn done() -> Reply {
    let mut reply = Response::new(full(Bytes::new()));
    *reply.status_mut() = StatusCode::NO_CONTENT;
    reply
}

pub(super) fn full(bytes: Bytes) -> UnsyncBoxBody<Bytes, io::Error> {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
