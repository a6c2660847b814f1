//! The masker of each project's shared variables, made once for each version of them and not for every instance. A cache and
//! no more: it may be lost at any moment, and it forgets a project that is gone.

use std::collections::VecDeque;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use hearth_api::ids::ProjectId;

use super::mask::Masker;
use crate::store::VariableRow;

/// Projects whose masker is kept: a few are busy at once, and each may hold 60 MB of secrets in all their spellings.
const KEPT: usize = 16;
/// Values that are shorter than this in sum, in bytes, take less than 10 ms and so no thread of their own.
const QUICK_BYTES: usize = 256 * 1024;

struct Entry {
    project: ProjectId,
    version: i64,
    masker: Masker,
}

/// Project ids are unique among all installations, so one cache serves every server in a process.
static CACHE: LazyLock<Mutex<VecDeque<Entry>>> = LazyLock::new(Mutex::default);

fn cache() -> MutexGuard<'static, VecDeque<Entry>> {
    // Its state is whole between any two statements.
    CACHE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The masker of a project's shared variables at this version.
pub async fn masker_of(project: &ProjectId, version: i64, variables: &[VariableRow]) -> Masker {
    let known = |entry: &&Entry| entry.project == *project && entry.version == version;
    if let Some(entry) = cache().iter().find(known) {
        return entry.masker.clone();
    }
    let masker = build(variables).await;
    forget(project);
    let mut cache = cache();
    cache.truncate(KEPT - 1);
    cache.push_front(Entry {
        project: project.clone(),
        version,
        masker: masker.clone(),
    });
    masker
}

/// A masker that is kept nowhere, built off the threads that answer requests when there is much to read.
pub async fn build(variables: &[VariableRow]) -> Masker {
    let of = |variables: &[VariableRow]| Masker::new(variables.iter().map(|variable| variable.value.as_str()));
    if variables.iter().map(|variable| variable.value.len()).sum::<usize>() < QUICK_BYTES {
        return of(variables);
    }
    let owned = variables.to_vec();
    let built = tokio::task::spawn_blocking(move || of(&owned)).await;
    // It ends early only when the runtime does, and then nothing is shown any more.
    built.unwrap_or_else(|_| of(variables))
}

/// The project is gone, or its variables are others now.
pub fn forget(project: &ProjectId) {
    cache().retain(|entry| entry.project != *project);
}
