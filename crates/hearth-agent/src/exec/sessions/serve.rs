//! What requests about sessions are answered with.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hearth_guest::exec_session::{Dropped, SessionAttach, SessionList, SessionSignal, SessionSpec, Signalled, Until};
use hearth_guest::frames::MAX_FRAME;
use hearth_guest::{FrameKind, TerminalSize, frames, paths};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use nix::sys::signal::Signal;
use tokio_util::sync::CancellationToken;

use super::super::{Execs, Input, Output, begin, output};
use super::buffer::Found;
use super::session::Session;
use super::{invalid, run};
use crate::files::Query;
use crate::http::{json_up_to, small_json};
use crate::reply::{self, Fault, Reply};

/// Longest wait for a session's end, where the host does not say.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// Answers a request about sessions.
pub(crate) async fn answer(
    request: Request<Incoming>,
    execs: Arc<Execs>,
    alive: CancellationToken,
) -> Result<Reply, Fault> {
    let sessions = &execs.sessions;
    let path = request.uri().path().to_owned();
    let query = Query::of(&request);
    let found = || sessions.find(query.value(paths::SESSION).unwrap_or_default());
    match (path.as_str(), request.method()) {
        (paths::SESSIONS, &Method::GET) => {
            let items = sessions.all().iter().map(|session| session.info()).collect();
            Ok(reply::json(StatusCode::OK, &SessionList { items }))
        }
        (paths::SESSIONS, &Method::POST) => {
            let spec: SessionSpec = json_up_to(request, MAX_FRAME, "a session").await?;
            Ok(reply::json(StatusCode::OK, &run::start(&execs, spec).await?))
        }
        (paths::SESSION_INFO, &Method::GET) => Ok(shown(&*found()?)),
        (paths::SESSION_INFO, &Method::DELETE) => {
            sessions.remove(&found()?, &execs.cgroups)?;
            Ok(reply::done())
        }
        (paths::SESSION_ATTACH, &Method::POST) => {
            let (attach, input): (SessionAttach, _) = begin(request).await?;
            let session = sessions.find(&attach.session)?;
            let (output, reply) = output();
            tokio::spawn(attached(session, attach, input, output, alive));
            Ok(reply)
        }
        (paths::SESSION_STDIN, &Method::POST) => {
            let session = found()?;
            let close = query.value(paths::CLOSE) == Some("true");
            write(&session, request, close).await?;
            Ok(reply::done())
        }
        (paths::SESSION_RESIZE, &Method::POST) => {
            let session = found()?;
            let size: TerminalSize = small_json(request, "a size").await?;
            session.resize(size)?;
            Ok(reply::done())
        }
        (paths::SESSION_SIGNAL, &Method::POST) => {
            let session = found()?;
            let SessionSignal { signal, tree } = small_json(request, "a signal").await?;
            let known = Signal::try_from(signal).map_err(|_| invalid(format!("there is no signal {signal}")))?;
            let processes = session.signal(known, tree).await?;
            Ok(reply::json(StatusCode::OK, &Signalled { processes }))
        }
        (paths::SESSION_WAIT, &Method::GET) => {
            let session = found()?;
            let limit = query.value(paths::LIMIT).and_then(|limit| limit.parse().ok());
            let limit = limit.map_or(LONGEST_WAIT, Duration::from_millis).min(LONGEST_WAIT);
            let mut progress = session.progress.subscribe();
            // That it is not over is an answer, too.
            drop(tokio::time::timeout(limit, progress.wait_for(|progress| progress.ended)).await);
            Ok(shown(&session))
        }
        _ => Err(Fault::unknown(&path)),
    }
}

fn shown(session: &Session) -> Reply {
    reply::json(StatusCode::OK, &session.info())
}

/// The body goes to the session's input, chunk by chunk: a process that does not read holds back the host, not the agent.
async fn write(session: &Session, request: Request<Incoming>, close: bool) -> Result<(), Fault> {
    let mut body = request.into_body();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Fault::bad(format!("the body could not be read: {error}")))?;
        if let Some(data) = frame.data_ref() {
            session.write(data).await?;
        }
    }
    if close {
        session.close_stdin().await?;
    }
    Ok(())
}

/// A reader. It goes without a trace.
async fn attached(
    session: Arc<Session>,
    attach: SessionAttach,
    input: Input,
    output: Output,
    alive: CancellationToken,
) {
    session.readers.fetch_add(1, Ordering::Relaxed);
    {
        let reading = read(&session, &attach, &output);
        let writing = feed(&session, input);
        tokio::pin!(reading, writing);
        let mut writes = true;
        loop {
            tokio::select! {
                biased;
                () = output.caller_gone() => break,
                () = alive.cancelled() => break,
                _ = &mut reading => break,
                () = &mut writing, if writes => writes = false,
            }
        }
    }
    session.readers.fetch_sub(1, Ordering::Relaxed);
}

/// Sends output until nothing more is wanted; `None` when the reader is gone.
async fn read(session: &Session, attach: &SessionAttach, output: &Output) -> Option<()> {
    let mut progress = session.progress.subscribe();
    let info = session.info();
    let written = info.output_bytes;
    let newest = attach.last.map_or(0, |last| written.saturating_sub(last));
    // A position that nothing was ever printed at is waited for by nobody.
    let mut position = attach.from.max(newest).min(written);
    let waited_for = attach.lossless.then(|| WaitedFor::begin(session, position));
    output.info(&info).await?;
    loop {
        if let Some(waited_for) = &waited_for {
            waited_for.is_at(position);
        }
        if attach.until == Until::Now && position >= written {
            break;
        }
        // Before it is read: what comes after that is not missed.
        let seen = *progress.borrow_and_update();
        match session.found_at(position) {
            Found::Output(kind, bytes) => {
                position += bytes.len() as u64;
                output.send(kind, &bytes).await.then_some(())?;
            }
            Found::Dropped(bytes) => {
                position += bytes;
                let frame = frames::encode_json(FrameKind::Dropped, &Dropped { bytes }).ok()?;
                output.send_frame(frame).await.then_some(())?;
            }
            Found::Nothing if seen.is_over(attach.until) => break,
            Found::Nothing => progress.changed().await.ok()?,
        }
    }
    output.info(&session.info()).await
}

/// A reader that the process waits for, for as long as this lives.
struct WaitedFor<'a> {
    session: &'a Session,
    number: u64,
}

impl<'a> WaitedFor<'a> {
    fn begin(session: &'a Session, position: u64) -> Self {
        let mut inside = session.inside();
        let number = inside.waited_for.last_key_value().map_or(0, |(last, _)| last + 1);
        inside.waited_for.insert(number, position);
        Self { session, number }
    }

    fn is_at(&self, position: u64) {
        self.session.inside().waited_for.insert(self.number, position);
        self.session.freed.send_replace(());
    }
}

impl Drop for WaitedFor<'_> {
    fn drop(&mut self) {
        self.session.inside().waited_for.remove(&self.number);
        self.session.freed.send_replace(());
    }
}

impl Output {
    async fn info(&self, info: &hearth_guest::exec_session::SessionInfo) -> Option<()> {
        let frame = frames::encode_json(FrameKind::Session, info).ok()?;
        self.send_frame(frame).await.then_some(())
    }
}

/// What the host sends: input, its end, the terminal's size. What is refused ends nothing but this.
async fn feed(session: &Session, mut input: Input) {
    while let Ok(Some((kind, payload))) = input.next().await {
        let done = match kind {
            FrameKind::Stdin => session.write(&payload).await,
            FrameKind::StdinEnd => session.close_stdin().await,
            FrameKind::Resize => match frames::decode_json(&payload) {
                // One without a terminal has no size.
                Ok(size) => {
                    drop(session.resize(size));
                    Ok(())
                }
                Err(_) => return,
            },
            // Nothing else is the host's to send; what comes after it cannot be trusted.
            _ => return,
        };
        if done.is_err() && session.read_only {
            // A terminal that takes no input still changes its size.
            continue;
        }
        if done.is_err() {
            return;
        }
    }
}
