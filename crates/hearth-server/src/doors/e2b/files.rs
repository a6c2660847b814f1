//! Plain HTTP of a sandbox: files read and written, with a secret or by a signed link; whether it runs; its variables.

use axum::Json;
use axum::extract::{FromRequest as _, Multipart, RawQuery, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures::TryStreamExt as _;
use hearth_guest::client::{AgentError, NewFile, Upload};
use hearth_guest::files::Entry;
use serde_json::{Value, json};

use super::access::{AsUser, Link, SANDBOX, Sandbox, opened};
use super::fault::Fault;
use super::users;
use crate::http::{AppState, Incoming, answered, describe, part_of, tag_of};

/// What the query of a file says.
#[derive(Debug, Default)]
struct Asked {
    path: Option<String>,
    user: Option<String>,
    signature: Option<String>,
    expiration: Option<String>,
}

impl Asked {
    fn of(query: Option<&str>, by_header: Option<String>) -> Self {
        let mut asked = Self::default();
        for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            let field = match &*name {
                "path" => &mut asked.path,
                "username" => &mut asked.user,
                "signature" => &mut asked.signature,
                "signature_expiration" => &mut asked.expiration,
                _ => continue,
            };
            *field = Some(value.into_owned());
        }
        asked.user = asked.user.filter(|user| !user.is_empty()).or(by_header);
        asked
    }

    /// The sandbox: by its secret, or by a signature.
    async fn open(&self, state: &AppState, headers: &HeaderMap, operation: &str) -> Result<Sandbox, Fault> {
        let Some(signature) = &self.signature else {
            return opened(state, headers).await;
        };
        let link = Link {
            path: self.path.as_deref().unwrap_or_default(),
            operation,
            user: self.user.as_deref().unwrap_or_default(),
            expiration: self.expiration.as_deref(),
            signature,
        };
        let named = headers.get(SANDBOX).and_then(|name| name.to_str().ok());
        link.open(state, named).await
    }
}

/// Reads a file.
pub async fn read(
    State(state): State<AppState>,
    AsUser(by_header): AsUser,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let asked = Asked::of(query.as_deref(), by_header);
    let reading = async {
        let sandbox = asked.open(&state, &headers, "read").await?;
        let path = asked
            .path
            .as_deref()
            .ok_or_else(|| Fault::wrong("the query must name a `path`"))?;
        let user = asked.user.as_deref();
        let path = users::path(user, path)?;
        let (part, tag) = (part_of(&headers), tag_of(&headers));
        let inside = sandbox.enter(&state).await?;
        let file = inside.agent.read_part(&path, user, part, tag.as_deref());
        let file = answered(&state, &sandbox.row, file).await??;
        let mut response = crate::http::Inside::body(inside.resumed, file.body).into_response();
        describe(&mut response, &file.head);
        Ok(response)
    };
    reading.await.unwrap_or_else(Fault::into_plain)
}

fn written(entry: &Entry) -> Value {
    json!({ "name": entry.name, "type": "file", "path": entry.path })
}

/// Writes a file, or several.
pub async fn write(
    State(state): State<AppState>,
    AsUser(by_header): AsUser,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    request: Request,
) -> Response {
    let asked = Asked::of(query.as_deref(), by_header);
    let writing = async {
        let sandbox = asked.open(&state, &headers, "write").await?;
        if headers.keys().any(|name| name.as_str().starts_with("x-metadata-")) {
            return Err(Fault::wrong("files have no metadata here: leave it out"));
        }
        let kind = headers
            .get(header::CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok())
            .unwrap_or_default();
        let written = match kind.starts_with("multipart/form-data") {
            true => several(&state, &sandbox, &asked, request).await?,
            false => vec![one(&state, &sandbox, &asked, request).await?],
        };
        Ok(Json(written).into_response())
    };
    writing.await.unwrap_or_else(Fault::into_plain)
}

async fn one(state: &AppState, sandbox: &Sandbox, asked: &Asked, request: Request) -> Result<Value, Fault> {
    let path = asked
        .path
        .as_deref()
        .ok_or_else(|| Fault::wrong("the query must name a `path`"))?;
    let user = asked.user.as_deref();
    let path = users::path(user, path)?;
    let inside = sandbox.enter(state).await?;
    need_user(&inside.agent, user).await?;
    let body = Incoming::unshown(state, request.into_body());
    let wanted = NewFile {
        user,
        ..NewFile::default()
    };
    let entry = inside.agent.replace_file(&path, wanted, body.upload()).await;
    if entry.is_err() {
        body.drain().await;
    }
    Ok(written(&entry?))
}

async fn several(state: &AppState, sandbox: &Sandbox, asked: &Asked, request: Request) -> Result<Vec<Value>, Fault> {
    let broken = |error: &dyn std::fmt::Display| Fault::wrong(format!("the form could not be read: {error}"));
    let mut form = Multipart::from_request(request, &())
        .await
        .map_err(|error| broken(&error))?;
    let user = asked.user.as_deref();
    let inside = sandbox.enter(state).await?;
    need_user(&inside.agent, user).await?;
    let mut all = Vec::new();
    while let Some(field) = form.next_field().await.map_err(|error| broken(&error))? {
        if field.name() != Some("file") {
            continue;
        }
        let named = asked.path.clone().or_else(|| field.file_name().map(str::to_owned));
        let path = named.ok_or_else(|| Fault::wrong("a part names no file, and the query no `path`"))?;
        let path = users::path(user, &path)?;
        let wanted = NewFile {
            user,
            ..NewFile::default()
        };
        // A field lives no longer than its form: its bytes go through a channel.
        let (bytes, mut waiting) = tokio::sync::mpsc::channel(4);
        let upload = Upload::from_stream(futures::stream::poll_fn(move |context| waiting.poll_recv(context)));
        let passing = async move {
            let mut field = field.map_err(std::io::Error::other);
            loop {
                match field.try_next().await {
                    Ok(None) => return,
                    Ok(Some(chunk)) => {
                        if bytes.send(Ok(chunk)).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        drop(bytes.send(Err(error)).await);
                        return;
                    }
                }
            }
        };
        let (entry, ()) = tokio::join!(inside.agent.replace_file(&path, wanted, upload), passing);
        all.push(written(&entry?));
    }
    if all.is_empty() {
        return Err(Fault::wrong("the form holds no part named `file`"));
    }
    Ok(all)
}

/// The user that E2B's clients take for given is made before its first file: a body cannot be sent twice.
async fn need_user(agent: &hearth_guest::client::AgentClient, user: Option<&str>) -> Result<(), Fault> {
    let Some(name) = user.filter(|name| *name != "root") else {
        return Ok(());
    };
    match agent.entry("/", Some(name)).await {
        Ok(_) => Ok(()),
        Err(error @ AgentError::Refused { .. }) => {
            let fault = Fault::from(error);
            match users::may_lack(user, &fault) {
                true => users::make(agent).await,
                false => Err(fault),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether it runs.
pub async fn health(State(state): State<AppState>, headers: HeaderMap) -> Response {
    let name = headers
        .get(SANDBOX)
        .and_then(|name| name.to_str().ok())
        .unwrap_or_default();
    let asleep = |sandbox: &Sandbox| {
        let kept = sandbox.seen.kept.as_ref();
        kept.is_some_and(|kept| kept.paused_at.is_some() && !kept.auto_resume)
    };
    match Sandbox::running(&state, name).await {
        Ok(sandbox) if asleep(&sandbox) => Fault::NoSandbox(name.to_owned()).into_plain(),
        // A working connection says more than the host can.
        Ok(sandbox) if state.connections.current(&sandbox.row.vm).is_none() => {
            match state.probes.ends().check(&sandbox.row).await {
                Ok(Some(_)) => Fault::NoSandbox(name.to_owned()).into_plain(),
                Ok(None) => StatusCode::NO_CONTENT.into_response(),
                Err(error) => Fault::from(error).into_plain(),
            }
        }
        Ok(_) => StatusCode::NO_CONTENT.into_response(),
        Err(fault) => fault.into_plain(),
    }
}
