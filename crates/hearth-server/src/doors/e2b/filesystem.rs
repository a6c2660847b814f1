//! `filesystem.Filesystem`: what is there, made, moved and removed. The agent does it as the user that is named.

use axum::Json;
use axum::extract::State;
use hearth_guest::client::{AgentClient, AgentError, NewFile};
use hearth_guest::files::{Entry, EntryKind, FaultCode, MAX_ENTRIES};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::access::{AsUser, Opened, Sandbox};
use super::fault::{Code, Fault};
use super::frames::Call;
use super::process::asked;
use super::users;
use crate::http::AppState;

/// Most levels of a list.
const DEEPEST: u32 = 100;

/// An entry as clients read it.
pub fn shown(entry: &Entry) -> Value {
    let kind = match entry.kind {
        EntryKind::File => "FILE_TYPE_FILE",
        EntryKind::Directory => "FILE_TYPE_DIRECTORY",
        EntryKind::Symlink => "FILE_TYPE_SYMLINK",
        EntryKind::Other => "FILE_TYPE_UNSPECIFIED",
    };
    // A guest may set any time on a file; what no date can be is the beginning of all.
    let modified = Timestamp::from_millisecond(entry.modified_unix_ms).unwrap_or_default();
    let mut shown = json!({
        "name": entry.name,
        "type": kind,
        "path": entry.path,
        "size": entry.size.to_string(),
        "mode": entry.mode & 0o777,
        "permissions": permissions(entry),
        "owner": entry.owner,
        "group": entry.group,
        "modifiedTime": modified.to_string(),
        "metadata": {},
    });
    if let Some(target) = &entry.target {
        shown["symlinkTarget"] = json!(target);
    }
    shown
}

/// Permission bits as Go writes them.
fn permissions(entry: &Entry) -> String {
    let mut text = String::from(match entry.kind {
        EntryKind::File => "-",
        EntryKind::Directory => "d",
        EntryKind::Symlink => "L",
        EntryKind::Other => "?",
    });
    for (at, letter) in "rwxrwxrwx".chars().enumerate() {
        let is_set = entry.mode >> (8 - at) & 1 == 1;
        text.push(if is_set { letter } else { '-' });
    }
    text
}

/// The same, where the user that E2B's clients take for given may have to be made first.
pub async fn as_user<T, Asked>(
    state: &AppState,
    sandbox: &Sandbox,
    user: Option<&str>,
    ask: impl Fn(AgentClient) -> Asked,
) -> Result<T, Fault>
where
    Asked: Future<Output = Result<T, AgentError>> + Send,
{
    match asked(state, sandbox, &ask).await {
        Err(fault) if users::may_lack(user, &fault) => {
            let inside = sandbox.enter(state).await?;
            users::make(&inside.agent).await?;
            asked(state, sandbox, &ask).await
        }
        answer => answer,
    }
}

#[derive(Deserialize)]
pub struct OfPath {
    #[serde(default)]
    path: String,
}

pub async fn stat(
    State(state): State<AppState>,
    AsUser(user): AsUser,
    Opened(sandbox): Opened,
    Call(request): Call<OfPath>,
) -> Result<Json<Value>, Fault> {
    let (user, path) = (user.as_deref(), users::path(user.as_deref(), &request.path)?);
    let entry = as_user(&state, &sandbox, user, |agent| {
        let path = &path;
        async move { agent.entry(path, user).await }
    })
    .await?;
    Ok(Json(json!({ "entry": shown(&entry) })))
}

#[derive(Deserialize)]
pub struct ListDirRequest {
    #[serde(default)]
    path: String,
    depth: Option<u32>,
}

pub async fn list_dir(
    State(state): State<AppState>,
    AsUser(user): AsUser,
    Opened(sandbox): Opened,
    Call(request): Call<ListDirRequest>,
) -> Result<Json<Value>, Fault> {
    let (user, path) = (user.as_deref(), users::path(user.as_deref(), &request.path)?);
    let depth = request.depth.unwrap_or(1).clamp(1, DEEPEST);
    let listed = as_user(&state, &sandbox, user, |agent| {
        let path = &path;
        async move { agent.list_folder(path, user, depth, MAX_ENTRIES).await }
    });
    let list = listed.await?;
    if list.truncated {
        let why = format!("the folder holds more than {MAX_ENTRIES} entries: list a folder below it, or fewer levels");
        return Err(Fault::new(Code::ResourceExhausted, why));
    }
    let entries: Vec<Value> = list.items.iter().map(shown).collect();
    Ok(Json(json!({ "entries": entries })))
}

pub async fn make_dir(
    State(state): State<AppState>,
    AsUser(user): AsUser,
    Opened(sandbox): Opened,
    Call(request): Call<OfPath>,
) -> Result<Json<Value>, Fault> {
    let (user, path) = (user.as_deref(), users::path(user.as_deref(), &request.path)?);
    let wanted = NewFile {
        user,
        ..NewFile::default()
    };
    let entry = as_user(&state, &sandbox, user, |agent| {
        let path = &path;
        async move { agent.make_folder(path, wanted).await }
    })
    .await?;
    Ok(Json(json!({ "entry": shown(&entry) })))
}

#[derive(Deserialize)]
pub struct MoveRequest {
    #[serde(default)]
    source: String,
    #[serde(default)]
    destination: String,
}

pub async fn rename(
    State(state): State<AppState>,
    AsUser(user): AsUser,
    Opened(sandbox): Opened,
    Call(request): Call<MoveRequest>,
) -> Result<Json<Value>, Fault> {
    let user = user.as_deref();
    let (from, to) = (
        users::path(user, &request.source)?,
        users::path(user, &request.destination)?,
    );
    let moved = as_user(&state, &sandbox, user, |agent| {
        let (from, to) = (&from, &to);
        async move { agent.move_entry(from, to, user, true).await }
    });
    Ok(Json(json!({ "entry": shown(&moved.await?) })))
}

/// What is not there is removed, too.
pub async fn remove(
    State(state): State<AppState>,
    AsUser(user): AsUser,
    Opened(sandbox): Opened,
    Call(request): Call<OfPath>,
) -> Result<Json<Value>, Fault> {
    let (user, path) = (user.as_deref(), users::path(user.as_deref(), &request.path)?);
    let removed = as_user(&state, &sandbox, user, |agent| {
        let path = &path;
        async move {
            match agent.remove_entry(path, user, true).await {
                Err(AgentError::Refused {
                    code: Some(FaultCode::NotFound),
                    ..
                }) => Ok(()),
                done => done,
            }
        }
    });
    removed.await?;
    Ok(Json(json!({})))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_is_shown_as_clients_read_it() {
        let entry = Entry {
            name: "a".to_owned(),
            name_base64: None,
            path: "/home/a".to_owned(),
            kind: EntryKind::File,
            size: 5,
            mode: 0o4644,
            uid: 0,
            gid: 0,
            owner: "root".to_owned(),
            group: "root".to_owned(),
            modified_unix_ms: 1_500,
            target: None,
        };
        let shown = shown(&entry);
        assert_eq!(
            (
                &shown["size"],
                &shown["mode"],
                &shown["permissions"],
                &shown["modifiedTime"]
            ),
            (
                &json!("5"),
                &json!(420),
                &json!("-rw-r--r--"),
                &json!("1970-01-01T00:00:01.5Z")
            )
        );
    }
}
