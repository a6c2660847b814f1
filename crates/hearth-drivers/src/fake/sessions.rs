//! Exec sessions of a fake guest: by the same rules as its commands, they print, echo, end, or run until a signal comes. Nothing runs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use hearth_guest::exec_session::{
    ProcessInfo, ProcessList, SessionAttach, SessionInfo, SessionList, SessionSignal, SessionSpec, SessionStart,
    Signalled, Until,
};
use hearth_guest::files::FaultCode;
use hearth_guest::frames::{self};
use hearth_guest::{AgentFault, ExecEnd, FrameKind, TerminalSize, paths};
use http::{Method, Request, StatusCode};
use hyper::body::{Frame, Incoming};
use tokio::sync::watch;
use tokio::time::Instant;

use super::agent::{Frames, Guest, Refusal, Reply, Sender, bad, done, json, query, stream, whole};
use super::script::Special;

/// The first process id of a session; the next one is one higher.
const FIRST_PID: u32 = 5000;

/// The sessions that the agent has.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    /// When that agent began; another one has none of them.
    agent: Mutex<Option<Instant>>,
    all: Mutex<Vec<Arc<Session>>>,
}

#[derive(Debug)]
struct Session {
    echoes: bool,
    /// Since when it uses the processor.
    computes: Option<Instant>,
    inside: Mutex<Inside>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Clone)]
struct Inside {
    info: SessionInfo,
    printed: Vec<(FrameKind, Bytes)>,
}

impl Session {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn info(&self) -> SessionInfo {
        self.inside().info.clone()
    }

    fn print(&self, kind: FrameKind, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        {
            let mut inside = self.inside();
            inside.info.output_bytes += bytes.len() as u64;
            inside.printed.push((kind, bytes));
        }
        self.changed.send_replace(());
    }

    fn end(&self, code: Option<i32>, signal: Option<i32>) {
        {
            let info = &mut self.inside().info;
            info.end.get_or_insert(ExecEnd::Exited {
                code,
                signal,
                duration_ms: 0,
                log: None,
                out_of_memory: None,
            });
            info.ended_unix_ms = Some(info.started_unix_ms);
            (info.output_open, info.stdin_open) = (false, false);
        }
        self.changed.send_replace(());
    }

    /// Input, and whether it ends with it.
    fn read(&self, bytes: Bytes, close: bool) -> Result<(), Box<Reply>> {
        let info = self.info();
        if !info.stdin_open {
            return Err(fault(
                StatusCode::CONFLICT,
                FaultCode::Conflict,
                format!("the session {} takes no input", info.id),
            ));
        }
        if self.echoes {
            self.print(FrameKind::Stdout, bytes);
        }
        if close {
            self.end(Some(0), None);
        }
        Ok(())
    }

    fn resize(&self, size: TerminalSize) {
        self.inside().info.terminal = Some(size);
        self.print(FrameKind::Stdout, format!("{} x {}\r\n", size.rows, size.cols).into());
    }
}

fn fault(status: StatusCode, code: FaultCode, message: impl Into<String>) -> Box<Reply> {
    let message = message.into();
    Box::new(json(
        status,
        &AgentFault {
            message,
            code: Some(code),
        },
    ))
}

/// Whether a path is about sessions or processes.
pub(super) fn is_path(path: &str) -> bool {
    path == paths::SESSIONS || path == paths::PROCESSES || path.starts_with(paths::SESSION_PREFIX)
}

impl Sessions {
    fn all(&self) -> MutexGuard<'_, Vec<Arc<Session>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of another guest that continues from here: each in the state it is in now.
    pub(super) fn copy(&self) -> Self {
        let copy = |session: &Arc<Session>| {
            Arc::new(Session {
                echoes: session.echoes,
                computes: session.computes,
                inside: Mutex::new(session.inside().clone()),
                changed: watch::Sender::new(()),
            })
        };
        Self {
            agent: Mutex::default(),
            all: Mutex::new(self.all().iter().map(copy).collect()),
        }
    }

    fn infos(&self) -> Vec<SessionInfo> {
        self.all().iter().map(|session| session.info()).collect()
    }

    /// A new agent knows nothing of what was before.
    fn of_agent(&self, began: Instant) {
        let mut agent = self.agent.lock().unwrap_or_else(PoisonError::into_inner);
        if agent.replace(began).is_some_and(|before| before != began) {
            self.all().clear();
        }
    }

    fn find(&self, name: &str) -> Result<Arc<Session>, Box<Reply>> {
        let named = |session: &&Arc<Session>| {
            let info = session.info();
            info.id == name || info.tag.as_deref() == Some(name) || info.pid.to_string() == name
        };
        let all = self.all();
        let found = all.iter().filter(named).max_by_key(|session| session.info().runs());
        found.cloned().ok_or_else(|| {
            fault(
                StatusCode::NOT_FOUND,
                FaultCode::NotFound,
                format!("there is no session {name:?} in this VM"),
            )
        })
    }

    fn start(&self, guest: &Guest, spec: SessionSpec) -> Result<Reply, Refusal> {
        let rule = guest.begin(&spec.command);
        if let Special::End(ExecEnd::NotStarted { reason, code }) = rule.special {
            return Ok(json(StatusCode::OK, &SessionStart::NotStarted { reason, code }));
        }
        let taken = |info: &SessionInfo| info.runs() && info.tag.is_some() && info.tag == spec.tag;
        if self.infos().iter().any(taken) {
            return Ok(*fault(
                StatusCode::CONFLICT,
                FaultCode::Exists,
                "a session with this tag runs already",
            ));
        }
        let number = u32::try_from(self.all().len()).unwrap_or_default();
        let info = SessionInfo {
            id: format!("s-{number:08x}"),
            tag: spec.tag,
            pid: FIRST_PID + number,
            argv: spec.command.argv.unwrap_or_default(),
            cwd: spec.command.cwd.unwrap_or_default(),
            user: spec.command.user.unwrap_or_else(|| "root".into()),
            terminal: spec.terminal,
            stdin_open: (spec.stdin || spec.terminal.is_some()) && !spec.read_only,
            started_unix_ms: 0,
            timeout_ms: spec.command.timeout_ms,
            end: None,
            ended_unix_ms: None,
            output_bytes: 0,
            dropped_bytes: 0,
            output_open: true,
            readers: 0,
        };
        let session = Arc::new(Session {
            echoes: rule.special == Special::Echo || info.terminal.is_some(),
            computes: (rule.special == Special::Computes).then(Instant::now),
            inside: Mutex::new(Inside {
                info: info.clone(),
                printed: Vec::new(),
            }),
            changed: watch::Sender::new(()),
        });
        self.all().push(Arc::clone(&session));
        session.print(FrameKind::Stdout, rule.stdout.clone().into());
        session.print(FrameKind::Stderr, rule.stderr.clone().into());
        if !session.echoes && !matches!(rule.special, Special::NeverEnds | Special::Computes) {
            tokio::spawn(async move {
                tokio::time::sleep(rule.takes).await;
                session.end(Some(rule.code), None);
            });
        }
        Ok(json(StatusCode::OK, &SessionStart::Started(Box::new(info))))
    }

    pub(super) async fn answer(&self, guest: &Guest, request: Request<Incoming>) -> Result<Reply, Refusal> {
        self.of_agent(guest.agent_began());
        let path = request.uri().path().to_owned();
        let name = query(&request, paths::SESSION).unwrap_or_default();
        let session = match (path.as_str(), request.method()) {
            (paths::SESSIONS, &Method::GET) => {
                return Ok(json(StatusCode::OK, &SessionList { items: self.infos() }));
            }
            (paths::SESSIONS, _) => return self.start(guest, of_json(request).await?),
            (paths::PROCESSES, _) => return Ok(json(StatusCode::OK, &self.processes())),
            (paths::SESSION_ATTACH, _) => {
                let (attach, input): (SessionAttach, _) = Frames::begin(request).await?;
                let (sender, reply) = stream();
                return Ok(match self.find(&attach.session) {
                    Ok(session) => {
                        tokio::spawn(feed(Arc::clone(&session), input));
                        tokio::spawn(read(session, attach, sender));
                        reply
                    }
                    Err(reply) => *reply,
                });
            }
            _ => match self.find(&name) {
                Ok(session) => session,
                Err(reply) => return Ok(*reply),
            },
        };
        Ok(match (path.as_str(), request.method()) {
            (paths::SESSION_INFO, &Method::DELETE) if session.info().runs() => {
                *fault(StatusCode::CONFLICT, FaultCode::Conflict, "the session runs")
            }
            (paths::SESSION_INFO, &Method::DELETE) => {
                self.all().retain(|other| !Arc::ptr_eq(other, &session));
                done()
            }
            (paths::SESSION_STDIN, _) => {
                let close = query(&request, paths::CLOSE).as_deref() == Some("true");
                match session.read(whole(request).await?, close) {
                    Ok(()) => done(),
                    Err(reply) => *reply,
                }
            }
            (paths::SESSION_RESIZE, _) => {
                session.resize(of_json(request).await?);
                done()
            }
            (paths::SESSION_SIGNAL, _) if !session.info().runs() => {
                *fault(StatusCode::CONFLICT, FaultCode::Conflict, "the session has ended")
            }
            (paths::SESSION_SIGNAL, _) => {
                let wanted: SessionSignal = of_json(request).await?;
                session.end(None, Some(wanted.signal));
                json(
                    StatusCode::OK,
                    &Signalled {
                        processes: if wanted.tree { 2 } else { 1 },
                    },
                )
            }
            (paths::SESSION_WAIT, _) => {
                let limit = query(&request, paths::LIMIT).and_then(|limit| limit.parse().ok());
                let limit = std::time::Duration::from_millis(limit.unwrap_or(u64::from(u32::MAX)));
                let ended = session.changed.subscribe();
                drop(tokio::time::timeout(limit, until_ended(&session, ended)).await);
                json(StatusCode::OK, &session.info())
            }
            _ => json(StatusCode::OK, &session.info()),
        })
    }

    fn processes(&self) -> ProcessList {
        let process = |(info, computes): (SessionInfo, Option<Instant>)| ProcessInfo {
            pid: info.pid,
            parent: 1,
            user: info.user,
            state: "S".into(),
            rss_kib: 1024,
            cpu_ms: computes.map_or(10, |since| {
                u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
            }),
            started_unix_ms: 0,
            command: info.argv.join(" "),
            session: Some(info.id),
        };
        let all = self.all();
        let running = all.iter().map(|session| (session.info(), session.computes));
        ProcessList {
            items: running.filter(|(info, _)| info.runs()).map(process).collect(),
        }
    }
}

async fn until_ended(session: &Session, mut changed: watch::Receiver<()>) {
    while session.info().runs() && changed.changed().await.is_ok() {}
}

async fn of_json<T: serde::de::DeserializeOwned>(request: Request<Incoming>) -> Result<T, Refusal> {
    serde_json::from_slice(&whole(request).await?).map_err(|error| bad(&error))
}

async fn feed(session: Arc<Session>, mut input: Frames) {
    while let Ok(Some((kind, payload))) = input.next().await {
        match kind {
            FrameKind::Stdin => drop(session.read(payload, false)),
            FrameKind::StdinEnd => drop(session.read(Bytes::new(), true)),
            FrameKind::Resize => {
                if let Ok(size) = frames::decode_json(&payload) {
                    session.resize(size);
                }
            }
            _ => return,
        }
    }
}

async fn read(session: Arc<Session>, attach: SessionAttach, sender: Sender) {
    let mut changed = session.changed.subscribe();
    let send = |kind, payload: Vec<u8>| sender.send(Ok(Frame::data(frames::encode(kind, &payload))));
    let info = |session: &Session| serde_json::to_vec(&session.info()).unwrap_or_default();
    let written = session.info().output_bytes;
    let newest = attach.last.map_or(0, |last| written.saturating_sub(last));
    let mut position = attach.from.max(newest).min(written);
    let mut gone = send(FrameKind::Session, info(&session)).await.is_err();
    while !gone {
        changed.borrow_and_update();
        let (next, runs) = {
            let inside = session.inside();
            (at(&inside.printed, position), inside.info.runs())
        };
        match next {
            Some((kind, bytes)) => {
                position += bytes.len() as u64;
                gone = send(kind, bytes).await.is_err();
            }
            None if !runs || attach.until == Until::Now => break,
            None => tokio::select! {
                changed = changed.changed() => gone = changed.is_err(),
                () = sender.closed() => gone = true,
            },
        }
    }
    drop(send(FrameKind::Session, info(&session)).await);
}

/// What was printed at a position.
fn at(printed: &[(FrameKind, Bytes)], mut position: u64) -> Option<(FrameKind, Vec<u8>)> {
    for (kind, bytes) in printed {
        let length = bytes.len() as u64;
        if position < length {
            let skipped = usize::try_from(position).unwrap_or_default();
            return Some((*kind, bytes[skipped..].to_vec()));
        }
        position -= length;
    }
    None
}
