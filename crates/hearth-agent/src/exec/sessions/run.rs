//! The life of a session: it is started, what it prints is kept, and its end is noted.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use hearth_guest::FrameKind;
use hearth_guest::exec_session::{SessionSpec, SessionStart};
use nix::unistd::Uid;
use tempfile::NamedTempFile;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Child;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::super::attached::{AFTERMATH, Outcome};
use super::super::launch::{Started, Status};
use super::super::launcher::Reads;
use super::super::not_started::NotStarted;
use super::super::plan::Plan;
use super::super::terminal::{Outer, Terminal};
use super::super::{Execs, memory, time_is_up};
use super::Buffer;
use super::session::{Changing, Progress, Session, Stdin};
use crate::reply::Fault;

/// How much is read from a process at once.
const READ_BYTES: usize = 16 * 1024;
/// Hexadecimal digits of an id: enough for a few hundred.
const ID_DIGITS: usize = 8;

/// What the task that waits for a session's end holds.
struct Life {
    child: Child,
    status: Status,
    start: Instant,
    began: Option<std::time::Duration>,
    /// The inner end of its terminal, held so that the outer one does not end first.
    inner: Option<OwnedFd>,
    /// A long command's text, which its shell reads.
    script: Option<NamedTempFile>,
}

/// Starts one. Comes back when the process is the command, or cannot be.
pub(super) async fn start(execs: &Arc<Execs>, spec: SessionSpec) -> Result<SessionStart, Fault> {
    let reserved = execs.sessions.reserve(spec.tag.clone())?;
    let _running = execs.pre_started.begin();
    match begin(execs, spec).await {
        Ok((session, life)) => {
            execs.sessions.inside().sessions.push(Arc::clone(&session));
            drop(reserved);
            let info = session.info();
            tokio::spawn(live(Arc::clone(execs), session, life));
            Ok(SessionStart::Started(Box::new(info)))
        }
        Err(NotStarted { reason, code }) => Ok(SessionStart::NotStarted { reason, code }),
    }
}

async fn begin(execs: &Arc<Execs>, spec: SessionSpec) -> Result<(Arc<Session>, Life), NotStarted> {
    let (start, began) = (Instant::now(), memory::now());
    let Plan { mut order, script } = execs.plan(&spec.command).await?;
    let (mut outer, mut inner) = (None, None);
    order.reads = match spec.terminal {
        Some(size) => {
            let terminal = Terminal::open(size)
                .map_err(|error| NotStarted::ours(format!("no terminal could be made: {error}")))?;
            outer = Some(Arc::new(terminal.outer));
            inner = Some(terminal.inner);
            Reads::Terminal(terminal.path)
        }
        None if spec.stdin => Reads::Caller,
        None => Reads::Nothing,
    };
    let (argv, cwd) = (order.argv.clone(), order.cwd.clone());
    let Started {
        mut child,
        tree,
        stdin,
        stdout,
        stderr,
        status,
    } = execs.start(order).await?;
    if let Some(fault) = status.started().await {
        // It says so as its last act.
        drop(child.wait().await);
        execs.cgroups.retire(tree.cgroup);
        return Err(fault);
    }
    let stdin = match &outer {
        Some(outer) => Some(Stdin::Terminal(Arc::clone(outer))),
        None => spec.stdin.then_some(Stdin::Pipe(stdin)),
    };
    let stdin_over = CancellationToken::new();
    if stdin.is_none() {
        stdin_over.cancel();
    }
    let session = Arc::new(Session {
        id: new_id(),
        tag: spec.tag,
        argv,
        cwd,
        user: spec.command.user.unwrap_or_else(|| own_name().to_owned()),
        read_only: spec.read_only,
        started_unix_ms: unix_ms(),
        timeout_ms: spec.command.timeout_ms,
        tree,
        outer: outer.clone(),
        stdin: tokio::sync::Mutex::new(stdin),
        stdin_over,
        inside: Mutex::new(Changing {
            buffer: Buffer::default(),
            size: spec.terminal,
            gone: false,
            end: None,
            ended_at: None,
            removed: false,
            waited_for: BTreeMap::new(),
            held_at: None,
        }),
        progress: watch::Sender::new(Progress {
            written: 0,
            open: if outer.is_some() { 1 } else { 2 },
            ended: false,
            started: false,
        }),
        freed: watch::Sender::new(()),
        readers: AtomicU32::new(0),
    });
    let into = |kind| Into {
        execs: Arc::clone(execs),
        session: Arc::clone(&session),
        kind,
    };
    match outer {
        Some(outer) => drop(tokio::spawn(into(FrameKind::Stdout).pass_terminal(outer))),
        None => {
            drop(tokio::spawn(into(FrameKind::Stdout).pass_pipe(stdout)));
            drop(tokio::spawn(into(FrameKind::Stderr).pass_pipe(stderr)));
        }
    }
    let life = Life {
        child,
        status,
        start,
        began,
        inner,
        script,
    };
    Ok((session, life))
}

fn new_id() -> String {
    let digits = Uuid::new_v4().simple().to_string();
    format!("s-{}", &digits[..ID_DIGITS])
}

fn own_name() -> &'static str {
    // In tests the agent may be somebody else.
    if Uid::effective().is_root() {
        "root"
    } else {
        "the agent's user"
    }
}

fn unix_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

/// Waits for the end.
async fn live(execs: Arc<Execs>, session: Arc<Session>, mut life: Life) {
    let outcome = tokio::select! {
        biased;
        ended = life.child.wait() => Outcome::Ended(ended),
        () = time_is_up(life.start, session.timeout_ms) => Outcome::TimedOut,
    };
    if matches!(outcome, Outcome::Ended(_)) {
        session.inside().gone = true;
    }
    let end = outcome
        .into_end(&life.status, &session.tree, &mut life.child, life.start, life.began)
        .await;
    {
        let mut inside = session.inside();
        inside.gone = true;
        inside.end = Some((end, unix_ms()));
        inside.ended_at = Some(Instant::now());
    }
    session.drop_stdin().await;
    drop(life.inner);
    session.progress.send_modify(|progress| progress.ended = true);
    last_output(&session).await;
    session.progress.send_modify(|progress| progress.started = true);
    execs.sessions.forget_old(&execs.cgroups);
    drop(life.script);
}

/// Waits until what it printed last was read. A process that it left running may hold the outputs for ever: then that is so when they
/// could be read for some time.
async fn last_output(session: &Session) {
    let mut progress = session.progress.subscribe();
    while tokio::time::timeout(AFTERMATH, progress.wait_for(|progress| progress.open == 0))
        .await
        .is_err()
    {
        let held_at = session.inside().held_at;
        let lately = held_at.is_some_and(|at| at.elapsed() < AFTERMATH);
        if session.is_held() {
            session.room().await;
        } else if !lately {
            return;
        }
    }
}

/// Where one output of a process goes.
struct Into {
    execs: Arc<Execs>,
    session: Arc<Session>,
    kind: FrameKind,
}

impl Into {
    async fn pass_pipe(self, pipe: Option<impl AsyncRead + Unpin>) {
        if let Some(mut pipe) = pipe {
            let mut buffer = vec![0; READ_BYTES];
            while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
                self.keep(&buffer[..read]).await;
            }
        }
        self.close();
    }

    async fn pass_terminal(self, outer: Arc<Outer>) {
        let mut buffer = vec![0; READ_BYTES];
        // The outer end says EIO when the inner one is closed.
        while let Ok(read @ 1..) = outer.read(&mut buffer).await {
            self.keep(&buffer[..read]).await;
        }
        self.close();
    }

    async fn keep(&self, bytes: &[u8]) {
        self.execs.sessions.keep(&self.session, self.kind, bytes);
        // One that prints without end must not keep the agent from anything else.
        tokio::task::yield_now().await;
        self.session.room().await;
    }

    fn close(&self) {
        self.session
            .progress
            .send_modify(|progress| progress.open = progress.open.saturating_sub(1));
    }
}
