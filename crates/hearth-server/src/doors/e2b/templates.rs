//! Templates that clients build from steps: projects without repositories, whose set-up commands are the steps. Each is an operation of
//! Hearth's own API, so that scopes, checks and records are its own; a build is a test boot.

use std::time::Duration;

use axum::extract::{Path, RawQuery, Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hearth_api::ids::InstanceId;
use hearth_api::project::VmSize;
use hearth_api::token::Scope;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};

use super::access::Key;
use super::body::Json;
use super::builds::{Api, Archive, Begun, begun, kept};
use super::fault::Refusal;
use super::find::{Template, named_project, parted, projects, slug_or_id, template};
use super::settling::Settling;
use super::steps::Build;
use super::{PREFIX, find, tags};
use crate::http::{AppState, MAX_BODY_BYTES, outer_host, outer_scheme, read};
use crate::store::ProjectRow;

/// How projects are described that were built so; no other one is changed by a build.
const DESCRIPTION: &str = "built from steps by a client of E2B";
/// Longest archive: it stands in a set-up command.
const MAX_ARCHIVE: usize = 700_000;
/// Archives that are kept until their build.
const MOST_ARCHIVES: usize = 64;
/// How long an archive may take to arrive.
const ARCHIVE_PATIENCE: Duration = Duration::from_secs(120);
/// How long the link to upload one is good.
const LINK: SignedDuration = SignedDuration::from_hours(1);
/// Builds that are known; older ones are asked for as what they are, test boots.
const MOST_BUILDS: usize = 1000;
/// Log entries of one answer.
const MOST_ENTRIES: usize = 100;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewTemplate {
    name: Option<String>,
    alias: Option<String>,
    #[serde(default)]
    tags: Vec<String>,
    cpu_count: Option<u32>,
    #[serde(rename = "memoryMB")]
    memory_mb: Option<u32>,
}

/// The project of a key by id, which is what clients were told.
async fn project_of(state: &AppState, key: &Key, id: &str) -> Result<ProjectRow, Refusal> {
    let all = projects(state, key).await?;
    let found = all.into_iter().find(|project| project.id.as_str() == id);
    found.ok_or_else(|| Refusal::not_found(format!("template `{id}` was not found")))
}

/// 404 for a template without steps: no build of it has succeeded, and none is being made, so its VM would hold nothing of it.
pub async fn must_be_built(state: &AppState, project: &ProjectRow) -> Result<(), Refusal> {
    if project.description.as_deref() != Some(DESCRIPTION) {
        return Ok(());
    }
    let pool = state.store.pool(&project.id).await?;
    let has_steps = pool.is_some_and(|pool| pool.config.setup_commands.is_some());
    if has_steps || !state.store.e2b_tags(&project.id).await?.is_empty() {
        return Ok(());
    }
    Err(Refusal::not_found(format!(
        "template `{}` was not found: none of its builds has succeeded",
        project.name
    )))
}

/// Begins a template: its project is there afterwards.
pub async fn begin(
    State(state): State<AppState>,
    axum::Extension(api): axum::Extension<Api>,
    key: Key,
    Json(body): Json<NewTemplate>,
) -> Result<Response, Refusal> {
    key.0.need(Scope::ProjectWrite)?;
    let name = body.name.or(body.alias).unwrap_or_default();
    let (name, tag) = parted(&name);
    let mut tags = vec![tag.unwrap_or(tags::DEFAULT).to_owned()];
    for tag in body.tags {
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    tags::check(&tags)?;
    if find::slug(name).is_empty() {
        return Err(Refusal::wrong("`name` must hold a letter or a digit"));
    }
    let (cpus, memory) = (body.cpu_count.unwrap_or(1), body.memory_mb.unwrap_or(512));
    if cpus == 0 || memory == 0 {
        return Err(Refusal::wrong("`cpuCount` and `memoryMB` must be at least 1"));
    }
    let fits = |size: &VmSize| {
        let shape = state.claims.recipes.shape_of(*size);
        shape.vcpus >= cpus && shape.memory_mib >= memory
    };
    let size = VmSize::ALL.into_iter().find(fits);
    let size =
        size.ok_or_else(|| Refusal::wrong(format!("no VM here has {cpus} processors and {memory} MiB of memory")))?;
    let all = projects(&state, &key).await?;
    let same = all
        .into_iter()
        .find(|project| find::slug(&project.name) == find::slug(name));
    let project = match same {
        Some(project) if project.description.as_deref() == Some(DESCRIPTION) => project,
        Some(project) => {
            let why = format!(
                "the name `{name}` is that of the project {}, which was not built from steps: choose another one",
                project.id
            );
            return Err(Refusal::new(StatusCode::CONFLICT, why).never_again());
        }
        None => {
            let new = json!({ "name": name, "description": DESCRIPTION });
            let made = api.ask(&key, Method::POST, "/projects", &new).await?;
            project_of(&state, &key, made["id"].as_str().unwrap_or_default()).await?
        }
    };
    let path = format!("/projects/{}", project.id);
    api.ask(&key, Method::PATCH, &path, &json!({ "vmSize": size.as_str() }))
        .await?;
    let build = uuid::Uuid::new_v4().to_string();
    {
        let mut kept = kept();
        kept.builds.push_back(Begun {
            build: build.clone(),
            project: project.id.clone(),
            tags: tags.clone(),
            boot: None,
            succeeded: None,
        });
        while kept.builds.len() > MOST_BUILDS {
            kept.builds.pop_front();
        }
    }
    let named = slug_or_id(&project);
    let answer = json!({
        "templateID": project.id, "buildID": build, "public": false, "names": [named], "aliases": [named], "tags": tags,
    });
    Ok((StatusCode::ACCEPTED, axum::Json(answer)).into_response())
}

fn archive_link(tenant: &str, project: &str, hash: &str) -> String {
    format!("e2b archive {tenant} {project} {hash}")
}

/// Where the files of a COPY are uploaded to, if they are not here.
pub async fn archive(
    State(state): State<AppState>,
    key: Key,
    headers: HeaderMap,
    Path((id, hash)): Path<(String, String)>,
) -> Result<Response, Refusal> {
    key.0.need(Scope::ProjectWrite)?;
    project_of(&state, &key, &id).await?;
    let tenant = &key.0.0.tenant;
    let present = kept()
        .archives
        .iter()
        .any(|one| one.tenant == *tenant && one.hash == hash);
    let is_hash = !hash.is_empty() && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    let host = outer_host(&headers).filter(|_| is_hash);
    let host = host.ok_or_else(|| Refusal::wrong("the request names no host, or no hash"))?;
    let signed = state
        .ports
        .links
        .sign(&archive_link(tenant, &id, &hash), Timestamp::now() + LINK);
    let url = format!(
        "{}://{host}{PREFIX}/templates/{id}/files/{hash}?tenant={tenant}&upload={signed}",
        outer_scheme(&headers)
    );
    let mut answer = json!({ "present": present });
    if !present {
        answer["url"] = json!(url);
    }
    Ok((StatusCode::CREATED, axum::Json(answer)).into_response())
}

/// Takes the files of a COPY. The link is the key.
pub async fn upload(
    State(state): State<AppState>,
    Path((id, hash)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<StatusCode, Refusal> {
    let field = |wanted: &str| {
        form_urlencoded::parse(query.as_deref().unwrap_or_default().as_bytes())
            .find(|(name, _)| name == wanted)
            .map(|(_, value)| value.into_owned())
            .unwrap_or_default()
    };
    let (tenant, signed) = (field("tenant"), field("upload"));
    let checked = state
        .ports
        .links
        .check(&archive_link(&tenant, &id, &hash), &signed, Timestamp::now());
    checked.map_err(|_| {
        Refusal::new(
            StatusCode::FORBIDDEN,
            "this link to upload files is not valid any more: build again",
        )
    })?;
    let bytes = read(request, MAX_BODY_BYTES, ARCHIVE_PATIENCE).await?;
    if bytes.len() > MAX_ARCHIVE {
        let why = format!(
            "the files of one COPY may take {MAX_ARCHIVE} bytes when they are compressed, and these take {}: copy less, or fetch them with a RUN",
            bytes.len()
        );
        return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, why).never_again());
    }
    let mut kept = kept();
    kept.archives.retain(|one| one.tenant != tenant || one.hash != hash);
    kept.archives.push_back(Archive { tenant, hash, bytes });
    while kept.archives.len() > MOST_ARCHIVES {
        kept.archives.pop_front();
    }
    Ok(StatusCode::OK)
}

/// Builds: the steps become the set-up, and a test boot runs it.
pub async fn build(
    State(state): State<AppState>,
    axum::Extension(api): axum::Extension<Api>,
    key: Key,
    Path((id, build)): Path<(String, String)>,
    Json(body): Json<Build>,
) -> Result<StatusCode, Refusal> {
    key.0.need(Scope::ProjectWrite)?;
    let project = project_of(&state, &key, &id).await?;
    let begun = begun(&build, &project.id)?;
    let mut commands = match &body.from_template {
        None => Vec::new(),
        Some(name) => commands_of(&state, &key, name).await?,
    };
    let own = body.commands(|hash| {
        let kept = kept();
        let found = kept
            .archives
            .iter()
            .find(|one| one.tenant == project.tenant && one.hash == hash);
        found.map(|one| STANDARD.encode(&one.bytes))
    });
    commands.extend(own.map_err(|why| Refusal::wrong(why).never_again())?);
    let pool = format!("/projects/{}/warm-pool", project.id);
    let before = state.store.pool(&project.id).await?;
    let before = before.and_then(|pool| pool.config.setup_commands);
    api.ask(&key, Method::PATCH, &pool, &json!({ "setupCommands": commands }))
        .await?;
    let boot = api.ask(&key, Method::POST, &format!("{pool}/test"), &json!({})).await?;
    let boot: Option<InstanceId> = boot["id"].as_str().and_then(|id| id.parse().ok());
    for one in kept().builds.iter_mut().filter(|one| one.build == build) {
        one.boot.clone_from(&boot);
    }
    if let Some(boot) = boot {
        let settling = Settling {
            state,
            api,
            key,
            pool,
            begun,
            boot,
            before,
        };
        tokio::spawn(settling.run());
    }
    Ok(StatusCode::ACCEPTED)
}

/// The set-up of another template, which this one begins with.
async fn commands_of(state: &AppState, key: &Key, name: &str) -> Result<Vec<Value>, Refusal> {
    let from = template(state, key, name).await?;
    let Template::Project(project) = &from else {
        return Err(Refusal::wrong("`fromTemplate` cannot be a snapshot here: create a sandbox from it").never_again());
    };
    if !project.repos.is_empty() {
        let why = format!(
            "`fromTemplate` {name} has repositories, which a template built from steps has not: make a project of it"
        );
        return Err(Refusal::wrong(why).never_again());
    }
    let pool = state.store.pool(&project.id).await?;
    let commands = pool.and_then(|pool| pool.config.setup_commands).unwrap_or_default();
    Ok(commands.iter().map(|command| json!(command)).collect())
}

/// How a build stands, and what it has printed from this entry on.
pub async fn status(
    State(state): State<AppState>,
    axum::Extension(api): axum::Extension<Api>,
    key: Key,
    Path((id, build)): Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> Result<axum::Json<Value>, Refusal> {
    let project = project_of(&state, &key, &id).await?;
    let begun = begun(&build, &project.id)?;
    let number = |wanted: &str| {
        let pairs = form_urlencoded::parse(query.as_deref().unwrap_or_default().as_bytes());
        pairs
            .filter(|(name, _)| name == wanted)
            .find_map(|(_, value)| value.parse::<usize>().ok())
    };
    let (offset, limit) = (
        number("logsOffset").unwrap_or(0),
        number("limit").unwrap_or(MOST_ENTRIES),
    );
    let mut answer =
        json!({ "templateID": project.id, "buildID": build, "status": "waiting", "logs": [], "logEntries": [] });
    let Some(boot) = begun.boot else {
        return Ok(axum::Json(answer));
    };
    let path = format!("/projects/{}/warm-pool/instances/{boot}", project.id);
    let boot = match api.ask(&key, Method::GET, &path, &Value::Null).await {
        Err(_) if begun.succeeded == Some(true) => {
            answer["status"] = json!("ready");
            return Ok(axum::Json(answer));
        }
        boot => boot?,
    };
    let entries: Vec<Value> = entries(&boot)
        .into_iter()
        .skip(offset)
        .take(limit.min(MOST_ENTRIES))
        .collect();
    let texts: Vec<Value> = entries.iter().map(|entry| entry["message"].clone()).collect();
    (answer["logEntries"], answer["logs"]) = (json!(entries), json!(texts));
    answer["status"] = match boot["status"].as_str() {
        Some("provisioning") => json!("building"),
        _ if begun.succeeded.is_none() => json!("building"),
        Some("failed") => {
            let why = boot["failureReason"].as_str().unwrap_or("the build failed");
            answer["reason"] = json!({ "message": why });
            json!("error")
        }
        _ => json!("ready"),
    };
    Ok(axum::Json(answer))
}

/// What the steps that have ended printed, line by line: entries are only ever added.
fn entries(boot: &Value) -> Vec<Value> {
    let mut entries = Vec::new();
    for step in boot["steps"].as_array().into_iter().flatten() {
        let failed = step["error"].as_str();
        let level = if failed.is_some() { "error" } else { "info" };
        let name = step["name"].as_str().unwrap_or_default();
        let lines = step["output"].as_str().into_iter().flat_map(str::lines).chain(failed);
        entries.extend(
            lines.map(|line| json!({ "timestamp": step["timestamp"], "level": level, "message": line, "step": name })),
        );
    }
    entries
}

/// The template of a name.
pub async fn alias(
    State(state): State<AppState>,
    key: Key,
    Path(name): Path<String>,
) -> Result<axum::Json<Value>, Refusal> {
    let found = template(&state, &key, &name).await?;
    if let Template::Project(project) = &found {
        must_be_built(&state, project).await?;
    }
    Ok(axum::Json(json!({ "templateID": found.project().id, "public": false })))
}

/// The templates that a key sees.
pub async fn list(State(state): State<AppState>, key: Key) -> Result<axum::Json<Value>, Refusal> {
    let all = projects(&state, &key).await?;
    let shown = all.iter().map(|project| {
        let shape = state.claims.recipes.shape(project);
        let named = slug_or_id(project);
        json!({
            "templateID": project.id, "buildID": project.id, "cpuCount": shape.vcpus, "memoryMB": shape.memory_mib,
            "diskSizeMB": u64::from(shape.disk_gib) * 1024, "public": false, "aliases": [named], "names": [named],
            "createdAt": project.created_at.to_string(), "updatedAt": project.updated_at.to_string(), "createdBy": null,
            "lastSpawnedAt": null, "spawnCount": 0, "buildCount": 1, "envdVersion": super::wire::ENVD_VERSION, "buildStatus": "ready",
        })
    });
    Ok(axum::Json(json!(shown.collect::<Vec<_>>())))
}

/// The tags of a template.
pub async fn list_tags(
    State(state): State<AppState>,
    key: Key,
    Path(name): Path<String>,
) -> Result<axum::Json<Value>, Refusal> {
    let project = named_project(&state, &key, &name).await?;
    let tags = state.store.e2b_tags(&project.id).await?;
    let shown = tags
        .iter()
        .map(|tag| json!({ "tag": tag.tag, "buildID": tag.build, "createdAt": tag.tagged_at.to_string() }));
    Ok(axum::Json(json!(shown.collect::<Vec<_>>())))
}

#[derive(Deserialize)]
pub struct GivenTags {
    /// A name with the tag of the build that gets them.
    target: String,
    tags: Vec<String>,
}

/// Gives a build more tags.
pub async fn give_tags(
    State(state): State<AppState>,
    key: Key,
    Json(body): Json<GivenTags>,
) -> Result<Response, Refusal> {
    key.0.need(Scope::ProjectWrite)?;
    tags::check(&body.tags)?;
    let project = named_project(&state, &key, &body.target).await?;
    let (_, tag) = parted(&body.target);
    let known = state.store.e2b_tags(&project.id).await?;
    let build = tags::newest(&known, tag.unwrap_or(tags::DEFAULT), &body.target)?;
    tags::give(&state, &project.id, &build.build, build.built_at, &body.tags).await?;
    let answer = json!({ "buildID": build.build, "tags": body.tags });
    Ok((StatusCode::CREATED, axum::Json(answer)).into_response())
}

#[derive(Deserialize)]
pub struct TakenTags {
    name: String,
    tags: Vec<String>,
}

/// Takes tags away.
pub async fn take_tags(
    State(state): State<AppState>,
    key: Key,
    Json(body): Json<TakenTags>,
) -> Result<StatusCode, Refusal> {
    key.0.need(Scope::ProjectWrite)?;
    tags::check(&body.tags)?;
    let project = named_project(&state, &key, &body.name).await?;
    state.store.remove_e2b_tags(&project.id, &body.tags).await?;
    Ok(StatusCode::NO_CONTENT)
}
