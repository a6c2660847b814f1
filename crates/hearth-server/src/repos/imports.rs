//! A commit's files for the import: what a repository says about its set-up to others than Hearth.

use std::time::Duration;

use futures::future::join_all;
use hearth_core::checkout::Checkout;
use hearth_import::{Entry, Fault, Files, Imported, Kind, MAX_ENTRIES};
use tokio::runtime::Handle;

use super::git::{GitError, git};
use super::mirrors::{Freshness, MirrorCommit, MirrorError, Mirrors};

/// Time limit of one git command of these.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a request waits for repositories to be fetched. A longer first fetch continues, and a later request sees its end.
const REQUEST_PATIENCE: Duration = Duration::from_secs(30);
/// A branch head that was fetched so long ago is good enough for a look.
const FRESH: Duration = Duration::from_secs(2);

/// What each of these says at its branch's newest commit, or why it could not be read. `patience`: for a fetch.
pub async fn of_checkouts(
    mirrors: &Mirrors,
    patience: Duration,
    checkouts: &[Checkout],
) -> Vec<Result<Imported, String>> {
    let reads = checkouts.iter().cloned().map(|checkout| {
        let mirrors = mirrors.clone();
        // A task of its own: when the request has waited long enough, the fetch continues.
        let read = tokio::spawn(async move {
            let remote = checkout.remote();
            let (name, branch) = (&checkout.repo_full_name, &checkout.branch);
            let head = mirrors.fetch(name, &remote, branch, patience, Freshness::Fetched(FRESH));
            let head = head.await.map_err(|error| error.to_string())?;
            let read = read(&head, &checkout.path).await;
            read.map_err(|error| error.to_string())?
                .map_err(|fault| fault.to_string())
        });
        tokio::time::timeout(REQUEST_PATIENCE, read)
    });
    let ended = join_all(reads).await.into_iter();
    let done = ended.map(|read| match read {
        Ok(Ok(read)) => read,
        Ok(Err(error)) => Err(format!("it could not be read: {error}")),
        Err(_) => Err("it is still being fetched; try again in a moment".to_owned()),
    });
    done.collect()
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
