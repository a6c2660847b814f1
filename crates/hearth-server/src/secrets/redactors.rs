//! The redactor of each project's shared variables, made once for each version of them and not for every instance. A cache and
//! no more: it may be lost at any moment, and it forgets a project that is gone.

use std::collections::VecDeque;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use hearth_api::ids::ProjectId;
use hearth_core::redact::Redactor;

use crate::store::{CredentialRow, Store, StoreError, VariableOwner, VariableRow};

/// Projects whose redactor is kept: a few are busy at once, and each may hold 60 MB of secrets in all the forms that are looked for.
const KEPT: usize = 16;
/// Values that are shorter than this in sum, in bytes, take less than 10 ms and so no thread of their own.
const QUICK_BYTES: usize = 256 * 1024;

/// Counts of changes: of the shared variables, and of the git credentials.
type Version = (i64, i64);

struct Entry {
    project: ProjectId,
    version: Version,
    redactor: Redactor,
}

/// Project ids are unique among all installations, so one cache serves every server in a process.
static CACHE: LazyLock<Mutex<VecDeque<Entry>>> = LazyLock::new(Mutex::default);

fn cache() -> MutexGuard<'static, VecDeque<Entry>> {
    // Its state is whole between any two statements.
    CACHE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn known(project: &ProjectId, version: Version) -> Option<Redactor> {
    let is_it = |entry: &&Entry| entry.project == *project && entry.version == version;
    cache().iter().find(is_it).map(|entry| entry.redactor.clone())
}

/// A project's git credentials, as variables whose values are secrets.
pub async fn of_credentials(store: &Store, project: &ProjectId) -> Result<Vec<VariableRow>, StoreError> {
    let all = store.credentials(project).await?;
    let row = |one: CredentialRow| VariableRow {
        name: one.host,
        value: one.secret,
    };
    Ok(all.into_iter().map(row).collect())
}

/// The redactor of a project's shared variables and git credentials as they are now. Of one that is gone it knows none.
pub async fn of_project(store: &Store, project: &ProjectId) -> Result<Redactor, StoreError> {
    let version = async || {
        let row = store.project(project).await?;
        Ok::<_, StoreError>(row.map(|row| (row.variables_version, row.credentials_version)))
    };
    let before = version().await?;
    if let Some(redactor) = before.and_then(|version| known(project, version)) {
        return Ok(redactor);
    }
    let mut variables = store.variables(project, VariableOwner::Shared).await?;
    variables.extend(of_credentials(store, project).await?);
    Ok(match version().await? {
        Some(now) if before == Some(now) => of_version(project, now, &variables).await,
        // These values may belong to either version.
        _ => build(&variables).await,
    })
}

/// The redactor of a project's shared variables and git credentials, which are these at this version.
pub async fn of_version(project: &ProjectId, version: Version, variables: &[VariableRow]) -> Redactor {
    if let Some(redactor) = known(project, version) {
        return redactor;
    }
    let redactor = build(variables).await;
    forget(project);
    let mut cache = cache();
    cache.truncate(KEPT - 1);
    cache.push_front(Entry {
        project: project.clone(),
        version,
        redactor: redactor.clone(),
    });
    redactor
}

/// A redactor that is kept nowhere, built off the threads that answer requests when there is much to read.
pub async fn build(variables: &[VariableRow]) -> Redactor {
    let of = |variables: &[VariableRow]| Redactor::new(variables.iter().map(|variable| variable.value.as_str()));
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
