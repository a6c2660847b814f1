//! What background processes print: those that a command left running, and background set-up commands.
//!
//! A command's children may hold its outputs open after it has ended. The agent keeps reading them, into a [`bounded`] log:
//! they would fill the pipe and stop, or die of a closed one. Background set-up commands write to plain files of the same folder
//! on their own. All logs are in the VM's file system, so a fork has them too, and so has the next agent.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use hearth_guest::{LogEntry, LogKind, LogList, paths};
use http::{Request, StatusCode};
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::files::Query;
use crate::reply::{self, Fault, Reply};

mod bounded;
mod holders;

use bounded::Bounded;

/// Where logs are, unless an option says otherwise.
pub(crate) const FOLDER: &str = "/var/log/hearth";
/// The part of it for what commands left running.
const OF_EXECS: &str = "exec";
/// What the names of those begin with; a number follows.
const EXEC_NAME: &str = "exec-";
/// So many of those are kept: the oldest whose processes have ended goes first.
const MOST_LOGS: usize = 64;
/// How much is read from a pipe or a log at once.
const READ_BYTES: usize = 16 * 1024;
/// How often a plain file is read again while a client follows it.
const CHECK_EVERY: Duration = Duration::from_millis(250);
/// As much of a command as is shown.
const COMMAND_CHARS: usize = 200;

#[derive(Debug)]
pub(crate) struct Logs {
    folder: PathBuf,
    inside: Mutex<Inside>,
}

#[derive(Debug)]
struct Inside {
    next: u64,
    logs: BTreeMap<u64, Arc<Log>>,
}

/// One of a command that has ended.
#[derive(Debug)]
pub(crate) struct Log {
    name: String,
    file: Mutex<Bounded>,
    state: watch::Sender<State>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    written: u64,
    /// Outputs that something holds open.
    open: usize,
}

impl Log {
    fn file(&self) -> MutexGuard<'_, Bounded> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_open(&self) -> bool {
        self.state.borrow().open > 0
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Keeps what was read. A full disk loses it, and never holds up who writes.
    fn keep(&self, bytes: &[u8]) {
        let written = {
            let mut file = self.file();
            if file.write(bytes).is_err() {
                file.skip(bytes.len() as u64);
            }
            file.written()
        };
        // The other output's may have come first.
        self.state
            .send_modify(|state| state.written = state.written.max(written));
    }
}

impl Logs {
    /// Finds those that are there already.
    pub(crate) fn find(folder: PathBuf) -> Self {
        let mut logs = BTreeMap::new();
        for entry in fs::read_dir(folder.join(OF_EXECS)).into_iter().flatten().flatten() {
            let path = entry.path();
            let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
            if let (Some(number), Some("log")) = (number, path.extension().and_then(|ext| ext.to_str())) {
                logs.insert(number, Arc::new(log(number, Bounded::of_earlier(path), 0)));
            }
        }
        let next = logs.last_key_value().map_or(1, |(last, _)| last + 1);
        Self {
            folder,
            inside: Mutex::new(Inside { next, logs }),
        }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new one, for the outputs of a command that something still holds open.
    pub(crate) fn begin(&self, argv: &[String], outputs: usize) -> Arc<Log> {
        let mut inside = self.inside();
        while inside.logs.len() >= MOST_LOGS {
            let oldest = inside.logs.iter().find(|(_, log)| !log.is_open());
            let Some((number, log)) = oldest.map(|(number, log)| (*number, Arc::clone(log))) else {
                break;
            };
            log.file().remove();
            inside.logs.remove(&number);
        }
        let number = inside.next;
        inside.next += 1;
        let path = self.folder.join(OF_EXECS).join(format!("{number}.log"));
        let command: String = argv.join(" ").chars().take(COMMAND_CHARS).collect();
        let log = Arc::new(log(number, Bounded::new(path, command), outputs));
        inside.logs.insert(number, Arc::clone(&log));
        log
    }

    /// Reads one output to its end, for as long as that takes.
    pub(crate) async fn drain(self: Arc<Self>, log: Arc<Log>, mut pipe: impl AsyncRead + Unpin) {
        let mut buffer = vec![0; READ_BYTES];
        while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
            let (kept, bytes) = (Arc::clone(&log), Bytes::copy_from_slice(&buffer[..read]));
            // A disk that is slow for a moment must not keep the agent from answering.
            if tokio::task::spawn_blocking(move || kept.keep(&bytes)).await.is_err() {
                break;
            }
        }
        log.state.send_modify(|state| state.open = state.open.saturating_sub(1));
        if !log.is_open() && log.state.borrow().written == 0 {
            // It never said anything.
            self.inside().logs.retain(|_, other| !Arc::ptr_eq(other, &log));
        }
    }

    fn list(&self) -> Vec<LogEntry> {
        let plain = self.plain();
        let held = holders::held_for_writing(&plain);
        let entry = |path: &PathBuf| plain_entry(path, held.as_ref().map(|held| held.contains(path)));
        let mut entries: Vec<LogEntry> = plain.iter().map(entry).collect();
        let logs: Vec<Arc<Log>> = self.inside().logs.values().cloned().collect();
        entries.extend(logs.iter().map(|log| {
            let file = log.file();
            LogEntry {
                name: log.name.clone(),
                kind: LogKind::Exec,
                command: Some(file.about().command.clone()).filter(|command| !command.is_empty()),
                bytes: file.kept(),
                dropped_bytes: file.about().dropped,
                open: Some(log.is_open()),
                changed_unix_ms: changed(file.path()),
            }
        }));
        entries
    }

    /// The files of background set-up commands.
    fn plain(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let is_log = |path: &PathBuf| path.extension().is_some_and(|ext| ext == "log") && path.is_file();
        let mut paths: Vec<PathBuf> = files.map(|file| file.path()).filter(is_log).collect();
        paths.sort();
        paths
    }

    fn find_log(&self, name: &str) -> Option<Source> {
        let number = name.strip_prefix(EXEC_NAME).and_then(|number| number.parse().ok());
        let log = number.and_then(|number: u64| self.inside().logs.get(&number).cloned());
        // Compared with what is there: a name never becomes a path.
        let plain = || self.plain().into_iter().find(|path| name_of(path) == name);
        log.map(Source::Bounded).or_else(|| plain().map(Source::Plain))
    }
}

fn log(number: u64, file: Bounded, open: usize) -> Log {
    let written = file.written();
    Log {
        name: format!("{EXEC_NAME}{number}"),
        file: Mutex::new(file),
        state: watch::Sender::new(State { written, open }),
    }
}

fn name_of(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn changed(path: &Path) -> Option<i64> {
    let changed = fs::metadata(path).and_then(|found| found.modified()).ok()?;
    i64::try_from(changed.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok()
}

/// `open`: whether a process may still write to it, where that is known.
fn plain_entry(path: &Path, open: Option<bool>) -> LogEntry {
    LogEntry {
        name: name_of(path),
        kind: LogKind::Setup,
        command: None,
        bytes: fs::metadata(path).map_or(0, |found| found.len()),
        dropped_bytes: 0,
        open,
        changed_unix_ms: changed(path),
    }
}

/// Where a log's text comes from.
#[derive(Debug, Clone)]
enum Source {
    Bounded(Arc<Log>),
    Plain(PathBuf),
}

impl Source {
    fn written(&self) -> u64 {
        match self {
            Self::Bounded(log) => log.file().written(),
            Self::Plain(path) => fs::metadata(path).map_or(0, |found| found.len()),
        }
    }

    /// Up to as much as is read at once, and where it begins.
    fn read(&self, position: u64) -> io::Result<(u64, Vec<u8>)> {
        match self {
            Self::Bounded(log) => log.file().read(position, READ_BYTES),
            Self::Plain(path) => {
                let mut file = fs::File::open(path)?;
                let mut bytes = Vec::new();
                // One that was emptied is read from its beginning again.
                let position = if file.metadata()?.len() < position { 0 } else { position };
                file.seek(SeekFrom::Start(position))?;
                file.take(READ_BYTES as u64).read_to_end(&mut bytes)?;
                Ok((position, bytes))
            }
        }
    }

    /// Waits until there may be more; false when there never will be.
    async fn more(&self, position: u64) -> bool {
        match self {
            Self::Bounded(log) => {
                let mut state = log.state.subscribe();
                let more = state.wait_for(|state| state.written > position || state.open == 0);
                more.await.is_ok_and(|state| state.written > position)
            }
            Self::Plain(_) => {
                tokio::time::sleep(CHECK_EVERY).await;
                true
            }
        }
    }
}

/// `GET /v1/logs`
pub(crate) async fn list(logs: Arc<Logs>) -> Result<Reply, Fault> {
    let items = tokio::task::spawn_blocking(move || logs.list()).await;
    let items = items.map_err(|error| Fault::bad(error.to_string()))?;
    Ok(reply::json(StatusCode::OK, &LogList { items }))
}

/// `GET /v1/log`
pub(crate) async fn read(request: Request<Incoming>, logs: &Logs, alive: CancellationToken) -> Result<Reply, Fault> {
    let query = Query::of(&request);
    let name = query.value(paths::NAME).unwrap_or_default();
    let source = logs.find_log(name).ok_or_else(|| Fault {
        code: None,
        status: StatusCode::NOT_FOUND,
        message: format!("there is no log {name:?} in this VM"),
    })?;
    let follow = query.value(paths::FOLLOW) == Some("true");
    // Without following, what comes from now on is left out: it may never end.
    let until = if follow { u64::MAX } else { source.written() };
    Ok(reply::stream(chunks(source, until, alive)))
}

fn chunks(
    source: Source,
    until: u64,
    alive: CancellationToken,
) -> impl futures::Stream<Item = io::Result<Bytes>> + Send + 'static {
    futures::stream::try_unfold((source, 0_u64), move |(source, position)| {
        let alive = alive.clone();
        async move {
            loop {
                if position >= until {
                    return Ok(None);
                }
                let reading = source.clone();
                let read = tokio::task::spawn_blocking(move || reading.read(position)).await;
                let (begin, mut bytes) = read.map_err(io::Error::other)??;
                bytes.truncate(usize::try_from(until.saturating_sub(begin)).unwrap_or(usize::MAX));
                if !bytes.is_empty() {
                    let next = begin + bytes.len() as u64;
                    return Ok(Some((Bytes::from(bytes), (source, next))));
                }
                if until < u64::MAX {
                    return Ok(None);
                }
                let more = tokio::select! {
                    more = source.more(position) => more,
                    () = alive.cancelled() => false,
                };
                if !more {
                    return Ok(None);
                }
            }
        }
    })
}
