//! What cannot be followed, and since when. In memory: after a restart the first poll says it again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hearth_core::checkout::Remote;
use jiff::Timestamp;

/// Longest message that is kept, characters: git repeats what a remote says, and a remote may say much.
const MESSAGE_CHARS: usize = 1000;

/// A repository that cannot be polled, or a branch that is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The repository.
    pub(crate) remote: Remote,
    /// The branch that is not there; `None` when it is the whole repository.
    pub(crate) branch: Option<String>,
    pub(crate) since: Timestamp,
    /// For a person: what was wrong at the last poll, and what to do.
    pub(crate) message: String,
    /// Looks in a row that found it so.
    pub(crate) times: u32,
}

/// All of them. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Faults(Arc<Mutex<Table>>);

/// Since when, what, how often: by repository and branch.
type Table = BTreeMap<(Remote, Option<String>), Fault>;

impl Faults {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is so, or still so. Said in the log when it begins.
    pub(super) fn note(&self, remote: &Remote, branch: Option<&str>, message: &str, now: Timestamp) {
        let message = one_line(message);
        let key = (remote.clone(), branch.map(str::to_owned));
        let mut table = self.table();
        if let Some(fault) = table.get_mut(&key) {
            fault.times = fault.times.saturating_add(1);
            fault.message = message;
            return;
        }
        tracing::warn!(
            url = remote.url,
            branch,
            why = message,
            "cannot be followed; it is tried again and again"
        );
        let (remote, branch) = key.clone();
        let fault = Fault {
            remote,
            branch,
            since: now,
            message,
            times: 1,
        };
        table.insert(key, fault);
    }

    /// It is so no longer. Said in the log once.
    pub(super) fn end(&self, remote: &Remote, branch: Option<&str>) {
        let ended = self.table().remove(&(remote.clone(), branch.map(str::to_owned)));
        if let Some(Fault { since, times, .. }) = ended {
            tracing::info!(url = remote.url, branch, %since, times, "can be followed again");
        }
    }

    /// Forgets those that nobody wants to know any more.
    pub(super) fn keep(&self, follows: impl Fn(&Remote, Option<&str>) -> bool) {
        self.table()
            .retain(|(remote, branch), _| follows(remote, branch.as_deref()));
    }

    pub(super) fn all(&self) -> Vec<Fault> {
        self.table().values().cloned().collect()
    }

    /// What keeps this branch from being followed: the repository's fault, or its own.
    pub(super) fn of(&self, remote: &Remote, branch: &str) -> Option<Fault> {
        let table = self.table();
        let whole = table.get(&(remote.clone(), None));
        whole
            .or_else(|| table.get(&(remote.clone(), Some(branch.to_owned()))))
            .cloned()
    }
}

/// The text in one line, cut to its length.
fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut line = words.join(" ");
    if let Some((end, _)) = line.char_indices().nth(MESSAGE_CHARS) {
        line.truncate(end);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_keeps_its_beginning_and_counts() {
        let faults = Faults::default();
        let remote = Remote {
            tenant: "t".to_owned(),
            project: None,
            url: "u".to_owned(),
        };
        let (first, later) = (Timestamp::UNIX_EPOCH, Timestamp::now());
        faults.note(&remote, None, "one\n\n two", first);
        faults.note(&remote, None, &"ä ".repeat(MESSAGE_CHARS), later);
        faults.note(&remote, Some("b"), "gone", later);
        let fault = faults.of(&remote, "b").unwrap();
        assert_eq!((fault.since, fault.times, fault.branch), (first, 2, None));
        assert_eq!(fault.message.chars().count(), MESSAGE_CHARS + 1);
        faults.end(&remote, None);
        assert_eq!(faults.of(&remote, "b").unwrap().message, "gone");
        assert_eq!(faults.of(&remote, "c"), None);
        faults.keep(|_, branch| branch.is_none());
        assert_eq!(faults.all(), []);
        assert_eq!(one_line(" a\n\n b\t"), "a b");
    }
}
