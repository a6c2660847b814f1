//! A commit's files for the import: what a repository says about its set-up to others than Hearth.

use std::time::Duration;

use futures::future::join_all;
use hearth_core::checkout::Checkout;
use hearth_core::redact::{Redacted, Redactor};
use hearth_import::{Entry, Fault, Files, Imported, Kind, MAX_ENTRIES};
use tokio::runtime::Handle;

use super::git::{GitError, git};
use super::heads::look_at_head;
use super::mirrors::{MirrorCommit, MirrorError, Mirrors};

/// Time limit of one git command of these.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a request waits for repositories to be fetched.
const REQUEST_PATIENCE: Duration = Duration::from_secs(30);

/// What each of these says at its branch's newest commit, or why it could not be read. `patience`: for a fetch.
pub async fn of_checkouts(
    mirrors: &Mirrors,
    patience: Duration,
    checkouts: &[Checkout],
) -> Vec<Result<Imported, String>> {
    let looks = checkouts.iter().map(|checkout| {
        let at = (
            checkout.repo_full_name.as_str(),
            checkout.remote(),
            checkout.branch.as_str(),
        );
        let workspace = checkout.path.clone();
        look_at_head(mirrors, at, patience, REQUEST_PATIENCE, async move |head| {
            read(&head, &workspace).await
        })
    });
    let done = join_all(looks).await.into_iter().map(|read| match read {
        Some(read) => read
            .map_err(|error| error.to_string())?
            .map_err(|fault| fault.to_string()),
        None => Err("it is still being fetched; try again in a moment".to_owned()),
    });
    done.collect()
}

/// What was taken of it, or what was not, a line each. The project's variables may stand in the repository's files, too.
pub fn told(imported: &Imported, taken: bool, redactor: &Redactor) -> Vec<Redacted> {
    let lines = imported.told(taken).into_iter();
    lines.map(|line| redactor.redact(&line)).collect()
}

/// What the commit says about its set-up. `workspace`: its checkout in VMs.
pub async fn read(head: &MirrorCommit, workspace: &str) -> Result<Result<Imported, Fault>, MirrorError> {
    let (commit, workspace) = (head.clone(), workspace.to_owned());
    let handle = Handle::current();
    // Parsers take their time with files that were made to take it.
    let read = tokio::task::spawn_blocking(move || hearth_import::read(&OfCommit { commit, handle }, &workspace));
    read.await.map_err(|error| MirrorError::Local {
        repo: head.repo().to_owned(),
        source: GitError::NotRun(std::io::Error::other(error)),
    })
}

/// The files of a commit, as git tells them.
struct OfCommit {
    commit: MirrorCommit,
    handle: Handle,
}

impl OfCommit {
    fn git(&self, args: &[&str]) -> Result<Vec<u8>, String> {
        let answer = self.handle.block_on(git(self.commit.mirror(), args, PATIENCE));
        answer.map(|answer| answer.stdout).map_err(|error| error.to_string())
    }
}

impl Files for OfCommit {
    fn list(&self, folder: &str) -> Result<Vec<Entry>, String> {
        let tree = format!("{}:{folder}", self.commit.commit);
        let listed = self.git(&["ls-tree", "-z", "-l", &tree])?;
        let entries = listed.split(|byte| *byte == 0).filter(|entry| !entry.is_empty());
        Ok(entries.filter_map(entry).take(MAX_ENTRIES).collect())
    }

    fn read(&self, path: &str) -> Result<Vec<u8>, String> {
        let object = format!("{}:{path}", self.commit.commit);
        self.git(&["cat-file", "blob", &object])
    }
}

/// One entry of a tree; `None` for a name that is no UTF-8: none that is read is of that kind.
fn entry(listed: &[u8]) -> Option<Entry> {
    let (about, name) = std::str::from_utf8(listed).ok()?.split_once('\t')?;
    let mut about = about.split_ascii_whitespace();
    let (mode, kind, _, length) = (about.next()?, about.next()?, about.next()?, about.next()?);
    let kind = match (mode, kind) {
        ("120000", _) => Kind::Link,
        (_, "blob") => Kind::File(length.parse().ok()?),
        (_, "tree") => Kind::Folder,
        _ => Kind::Other,
    };
    Some(Entry {
        name: name.to_owned(),
        kind,
    })
}
