//! What changes in a folder, as it happens: the kernel's inotify, recursive, with renames put together.
//!
//! One thread per watcher, which is the user's. It ends when nobody reads, or when what is watched is gone.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hearth_guest::files::{Change, ChangeKind, FaultCode};
use hearth_tree::beside;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::sync::mpsc;

use super::{fault, user};
use crate::reply::{self, Fault, Reply};
use crate::users::Identity;

/// Watchers at a time.
const MAX_WATCHERS: usize = 64;
/// Folders of one watcher.
const MAX_FOLDERS: usize = 16 * 1024;
/// Changes that wait for the reader. When there are more the kernel keeps some, and says when that was too many.
const WAITING: usize = 256;
/// Room for what is read of the kernel at once.
const BUFFER: usize = 16 * 1024;
/// How soon it is noticed that nobody reads.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// The other half of a rename comes at once, or not at all.
const HALF: Duration = Duration::from_millis(20);

static WATCHERS: AtomicUsize = AtomicUsize::new(0);

/// One of the places for watchers.
struct Slot;

impl Slot {
    fn take() -> Result<Self, Fault> {
        if WATCHERS.fetch_add(1, Ordering::Relaxed) < MAX_WATCHERS {
            return Ok(Self);
        }
        WATCHERS.fetch_sub(1, Ordering::Relaxed);
        Err(fault::conflict(
            FaultCode::Conflict,
            format!("{MAX_WATCHERS} watchers run in this VM already: end one first"),
        ))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        WATCHERS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The changes below a path, one line of JSON each, the first one when it has begun.
pub(super) async fn watch(path: PathBuf, recursive: bool, user: Identity) -> Result<Reply, Fault> {
    let place = Slot::take()?;
    let (sender, mut lines) = mpsc::channel(WAITING);
    let named = user.clone();
    let watching = tokio::spawn(async move {
        let work = move || {
            let _place = place;
            Watcher::begin(&path, recursive, &named, sender).map(Watcher::run)
        };
        user::run_long(&user, work).await
    });
    let Some(first) = lines.recv().await else {
        let failed = || fault::conflict(FaultCode::Conflict, "what is watched is gone");
        return Err(watching.await.ok().and_then(Result::err).unwrap_or_else(failed));
    };
    let rest = futures::stream::poll_fn(move |context| lines.poll_recv(context));
    let all = futures::StreamExt::chain(futures::stream::iter([first]), rest);
    Ok(reply::stream(futures::StreamExt::map(all, Ok)))
}

/// Nobody reads any more, or there is nothing left to watch.
struct Over;

struct Watcher {
    kernel: OwnedFd,
    top: PathBuf,
    recursive: bool,
    /// Where each watch is, below the top; the top itself is empty.
    folders: BTreeMap<i32, PathBuf>,
    sender: mpsc::Sender<Bytes>,
    /// What was said last, so that a file that is written in many chunks is not said as often.
    last: Option<Change>,
}

/// What the kernel said, kept beyond its buffer.
struct Event {
    number: i32,
    name: Option<PathBuf>,
    flags: ReadFlags,
    cookie: u32,
}

/// The first half of a rename.
struct Half {
    path: PathBuf,
    cookie: u32,
    is_folder: bool,
}

impl Event {
    fn is_folder(&self) -> bool {
        self.flags.contains(ReadFlags::ISDIR)
    }
}

impl Watcher {
    fn begin(path: &Path, recursive: bool, user: &Identity, sender: mpsc::Sender<Bytes>) -> Result<Self, Fault> {
        let refused = |error: io::Error| {
            if error.raw_os_error() == Some(nix::libc::ENOSPC) || error.raw_os_error() == Some(nix::libc::EMFILE) {
                let message = format!(
                    "the kernel of the VM cannot watch more: {} holds more folders than it has room for, or too much is watched \
                     already (fs.inotify.max_user_watches, max_user_instances)",
                    path.display()
                );
                return fault::conflict(FaultCode::Conflict, message);
            }
            fault::of(path, user, &error)
        };
        let kernel = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC);
        let kernel = kernel.map_err(|error| refused(error.into()))?;
        let mut watcher = Self {
            kernel,
            top: path.to_owned(),
            recursive,
            folders: BTreeMap::new(),
            sender,
            last: None,
        };
        watcher.add(Path::new("")).map_err(&refused)?;
        if recursive && fs::metadata(path).is_ok_and(|found| found.is_dir()) {
            watcher.add_below(PathBuf::new(), false).map_err(|error| match error {
                AddError::TooMany => {
                    let message = format!(
                        "{} holds more than {MAX_FOLDERS} folders: watch one below",
                        path.display()
                    );
                    fault::conflict(FaultCode::Conflict, message)
                }
                AddError::Io(error) => refused(error),
                AddError::Over => fault::conflict(FaultCode::Conflict, "nobody reads"),
            })?;
        }
        let _ = watcher.say(ChangeKind::Started, Path::new(""), None, false);
        Ok(watcher)
    }

    /// Watches one more path.
    fn add(&mut self, below: &Path) -> io::Result<()> {
        let mut flags = WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE
            | WatchFlags::MOVE
            | WatchFlags::EXCL_UNLINK;
        let is_top = below.as_os_str().is_empty();
        if is_top {
            flags |= WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
        } else {
            flags |= WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW;
        }
        // Joined with nothing, a file's path would end with a slash.
        let path = if is_top { self.top.clone() } else { self.top.join(below) };
        let number = inotify::add_watch(&self.kernel, path, flags)?;
        // One that was moved keeps its number.
        self.folders.insert(number, below.to_owned());
        Ok(())
    }

    /// Watches what is below a folder, and says what is found there, if that is new.
    fn add_below(&mut self, folder: PathBuf, says: bool) -> Result<(), AddError> {
        let mut waiting = VecDeque::from([folder]);
        while let Some(folder) = waiting.pop_front() {
            // What may not be read, or is gone, is not watched either.
            let Ok(entries) = fs::read_dir(self.top.join(&folder)) else {
                continue;
            };
            for entry in entries.flatten() {
                let path = folder.join(entry.file_name());
                let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
                if says && beside::replaces(&entry.file_name()).is_none() {
                    let said = self.say(ChangeKind::Created, &path, None, is_folder);
                    said.map_err(|Over| AddError::Over)?;
                }
                if !is_folder {
                    continue;
                }
                if self.folders.len() >= MAX_FOLDERS {
                    return Err(AddError::TooMany);
                }
                match self.add(&path) {
                    Ok(()) => waiting.push_back(path),
                    Err(error) if error.raw_os_error() == Some(nix::libc::ENOSPC) => return Err(AddError::Io(error)),
                    Err(_) => {}
                }
            }
        }
        Ok(())
    }

    /// To the end.
    fn run(mut self) {
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER];
        let mut half: Option<Half> = None;
        loop {
            let patience = if half.is_some() { HALF } else { CHECK_EVERY };
            let has_more = self.wait(patience);
            if self.sender.is_closed() {
                return;
            }
            if !has_more {
                if let Some(half) = half.take()
                    && self.moved_away(&half).is_err()
                {
                    return;
                }
                continue;
            }
            for event in self.read(&mut buffer) {
                if self.take(event, &mut half).is_err() {
                    return;
                }
            }
        }
    }

    fn wait(&self, patience: Duration) -> bool {
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO);
        let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&self.kernel), PollFlags::POLLIN)];
        poll(&mut fds, timeout).is_ok_and(|ready| ready > 0)
    }

    /// What the kernel has now, once its buffer full.
    fn read(&self, buffer: &mut [MaybeUninit<u8>]) -> Vec<Event> {
        let mut reader = Reader::new(&self.kernel, buffer);
        let mut events = Vec::new();
        loop {
            match reader.next() {
                Ok(event) => events.push(Event {
                    number: event.wd(),
                    name: event
                        .file_name()
                        .map(|name| PathBuf::from(OsStr::from_bytes(name.to_bytes()))),
                    flags: event.events(),
                    cookie: event.cookie(),
                }),
                Err(Errno::INTR) => continue,
                Err(_) => return events,
            }
            if reader.is_buffer_empty() {
                return events;
            }
        }
    }

    fn take(&mut self, event: Event, half: &mut Option<Half>) -> Result<(), Over> {
        let flags = event.flags;
        let place = self.folders.get(&event.number);
        let path = match (place, &event.name) {
            (Some(folder), Some(name)) => folder.join(name),
            (Some(folder), None) => folder.clone(),
            (None, _) => PathBuf::new(),
        };
        let is_known = place.is_some();
        if flags.contains(ReadFlags::MOVED_TO)
            && is_known
            && let Some(from) = half.take_if(|half| half.cookie == event.cookie)
        {
            return self.renamed(&from.path, &path, from.is_folder);
        }
        if let Some(half) = half.take() {
            self.moved_away(&half)?;
        }
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            self.say(ChangeKind::Overflow, Path::new(""), None, false)?;
            // Folders that were made meanwhile are not known.
            return self.watch_new(PathBuf::new(), false);
        }
        if !is_known {
            // Of a folder that was moved away.
            return Ok(());
        }
        if flags.intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT) {
            let _ = self.say(ChangeKind::Removed, Path::new(""), None, event.is_folder());
            let _ = self.say(ChangeKind::Ended, Path::new(""), None, event.is_folder());
            return Err(Over);
        }
        let is_unfinished = event
            .name
            .as_deref()
            .is_some_and(|name| beside::replaces(name.as_os_str()).is_some());
        if is_unfinished && !flags.contains(ReadFlags::MOVED_FROM) {
            // A file that is written beside its place: said when it is there.
            return Ok(());
        }
        if flags.contains(ReadFlags::MOVED_FROM) {
            *half = Some(Half {
                path,
                cookie: event.cookie,
                is_folder: event.is_folder(),
            });
        } else if flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
            self.say(ChangeKind::Created, &path, None, event.is_folder())?;
            if event.is_folder() && self.recursive {
                self.begin_folder(path, true)?;
            }
        } else if flags.contains(ReadFlags::DELETE) {
            self.say(ChangeKind::Removed, &path, None, event.is_folder())?;
        } else if flags.contains(ReadFlags::MODIFY) {
            self.say(ChangeKind::Written, &path, None, false)?;
        } else if flags.contains(ReadFlags::ATTRIB) && (event.name.is_some() || path.as_os_str().is_empty()) {
            self.say(ChangeKind::Attributes, &path, None, event.is_folder())?;
        }
        if flags.contains(ReadFlags::IGNORED) {
            self.folders.remove(&event.number);
        }
        Ok(())
    }

    /// A folder has come.
    fn begin_folder(&mut self, path: PathBuf, says: bool) -> Result<(), Over> {
        match self.add(&path) {
            Ok(()) => self.watch_new(path, says),
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOSPC) => {
                self.say(ChangeKind::Overflow, &path, None, true)
            }
            // It is gone again, or may not be read.
            Err(_) => Ok(()),
        }
    }

    /// What is below a folder may have come before it was watched.
    fn watch_new(&mut self, folder: PathBuf, says: bool) -> Result<(), Over> {
        if !self.recursive {
            return Ok(());
        }
        match self.add_below(folder.clone(), says) {
            Ok(()) => Ok(()),
            Err(AddError::Over) => Err(Over),
            Err(AddError::TooMany | AddError::Io(_)) => self.say(ChangeKind::Overflow, &folder, None, true),
        }
    }

    fn renamed(&mut self, old: &Path, new: &Path, is_folder: bool) -> Result<(), Over> {
        if let Some(replaces) = old.file_name().and_then(beside::replaces) {
            if !replaces {
                self.say(ChangeKind::Created, new, None, is_folder)?;
            }
            return self.say(ChangeKind::Written, new, None, is_folder);
        }
        if is_folder {
            for path in self.folders.values_mut() {
                let moved = path
                    .strip_prefix(old)
                    .ok()
                    .map(|rest| match rest.as_os_str().is_empty() {
                        true => new.to_owned(),
                        false => new.join(rest),
                    });
                if let Some(moved) = moved {
                    *path = moved;
                }
            }
        }
        self.say(ChangeKind::Renamed, new, Some(old), is_folder)
    }

    /// To somewhere that is not watched.
    fn moved_away(&mut self, half: &Half) -> Result<(), Over> {
        let path = &half.path;
        if half.is_folder {
            let gone: Vec<i32> = self
                .folders
                .iter()
                .filter(|(_, folder)| folder.starts_with(path))
                .map(|(number, _)| *number)
                .collect();
            for number in gone {
                self.folders.remove(&number);
                // It may be gone already.
                let _ = inotify::remove_watch(&self.kernel, number);
            }
        }
        if path.file_name().and_then(beside::replaces).is_some() {
            return Ok(());
        }
        self.say(ChangeKind::Removed, path, None, half.is_folder)
    }

    fn say(&mut self, kind: ChangeKind, path: &Path, from: Option<&Path>, is_folder: bool) -> Result<(), Over> {
        let change = Change {
            kind,
            path: path.to_string_lossy().into_owned(),
            from: from.map(|from| from.to_string_lossy().into_owned()),
            is_folder,
        };
        let repeats = matches!(kind, ChangeKind::Written | ChangeKind::Attributes);
        let has_room = self.sender.capacity() == self.sender.max_capacity();
        if repeats && !has_room && self.last.as_ref() == Some(&change) {
            // The reader has not even taken the last one.
            return Ok(());
        }
        // Our own type always has a JSON form.
        let mut line = serde_json::to_vec(&change).unwrap_or_default();
        line.push(b'\n');
        self.last = Some(change);
        self.sender.blocking_send(line.into()).map_err(|_| Over)
    }
}

/// Why a folder is not watched with all that is below it.
enum AddError {
    TooMany,
    Io(io::Error),
    Over,
}
