//! The names of what is there, from the server. A person waits for it with a finger on the key: it has a short time in all, and
//! what does not work gives no name and no message.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use clap_complete::engine::{CompletionCandidate, PathCompleter, ValueCompleter as _};
use hearth_api::client::Client;
use hearth_api::file::FileKind;
use hearth_api::find::{ClaimItem, LAST};
use hearth_api::fork::NamedCheckpointItem;
use hearth_api::ids::InstanceId;
use hearth_api::log::InstanceLog;
use hearth_api::session::{Session, SessionStatus};

use super::Kind;
use super::typed::Typed;
use crate::text::clean_line;
use crate::{connect, output, resolve};

/// For everything, from the start of the program.
const LIMIT: Duration = Duration::from_millis(800);
/// Another limit, in milliseconds, for a server that is far away.
const LIMIT_VARIABLE: &str = "HEARTH_COMPLETE_MS";
/// So many files of one folder are offered.
const MOST_FILES: usize = 500;
/// How long a command is that is shown beside a session's name.
const COMMAND_CHARS: usize = 60;

/// When the program began.
static BEGAN: OnceLock<Instant> = OnceLock::new();

/// Something that can be typed, and what it is.
struct Name {
    text: String,
    about: String,
}

/// Notes when it began.
pub(super) fn begin() {
    let _ = BEGAN.get_or_init(Instant::now);
}

/// What may stand for this word.
pub(super) fn candidates(kind: Kind, word: &OsStr) -> Vec<CompletionCandidate> {
    let mut candidates = Vec::new();
    if kind == Kind::Location {
        candidates = PathCompleter::any().complete(word);
    }
    if let Some(word) = word.to_str() {
        candidates.extend(
            names(kind, word)
                .into_iter()
                .filter(|name| name.text.starts_with(word) && can_be_typed(&name.text))
                .map(|name| CompletionCandidate::new(name.text).help(Some(clean_line(&name.about).into()))),
        );
    }
    candidates
}

/// What others have named must not act on the terminal, nor be taken for an option.
fn can_be_typed(text: &str) -> bool {
    !text.is_empty() && !text.starts_with('-') && clean_line(text) == text
}

fn limit() -> Duration {
    let named = std::env::var(LIMIT_VARIABLE).ok().and_then(|limit| limit.parse().ok());
    named.map_or(LIMIT, Duration::from_millis)
}

/// Asked in a thread of its own: whatever it waits for, the time is over when it is over.
fn names(kind: Kind, word: &str) -> Vec<Name> {
    let limit = limit();
    let left = BEGAN.get().map_or(limit, |began| limit.saturating_sub(began.elapsed()));
    let (sender, receiver) = mpsc::channel();
    let word = word.to_owned();
    let asking = thread::Builder::new().spawn(move || {
        let _ = sender.send(ask(kind, &word).unwrap_or_default());
    });
    match asking {
        Ok(_) => receiver.recv_timeout(left).unwrap_or_default(),
        Err(_) => Vec::new(),
    }
}

fn ask(kind: Kind, word: &str) -> Option<Vec<Name>> {
    let typed = Typed::parse(super::words_before())?;
    let is_stdin = |file: &Path| file == Path::new("-") || file.starts_with("/dev") || file.starts_with("/proc");
    if typed.globals.token_file.as_deref().is_some_and(is_stdin) {
        // It would read what the person types next.
        return None;
    }
    let client = connect::client(&typed.globals).ok()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .ok()?;
    runtime.block_on(async {
        match kind {
            Kind::Instance => instances(&client).await,
            Kind::Project => projects(&client).await,
            Kind::Session => Some(sessions(&client, &awake(&client, &typed.instance?).await?).await),
            Kind::Checkpoint => {
                let project = match (&typed.project, &typed.instance) {
                    (Some(project), _) => connect::project(&client, project).await.ok()?.id,
                    (None, Some(instance)) => {
                        let id = resolve::instance(&client, instance).await.ok()?;
                        client.view_instance(&id).await.ok()?.project_id
                    }
                    (None, None) => return None,
                };
                let checkpoints = client.list_checkpoints(&project).await.ok()?.items;
                let name = |one: NamedCheckpointItem| Name {
                    about: format!("made {}", output::ago(one.created_at)),
                    text: one.name,
                };
                Some(checkpoints.into_iter().map(name).collect())
            }
            Kind::Log => {
                let id = awake(&client, &typed.instance?).await?;
                let (mut logs, sessions) = tokio::join!(logs(&client, &id), sessions(&client, &id));
                logs.extend(sessions);
                Some(logs)
            }
            Kind::Location => match word.split_once(':') {
                Some((vm, path)) if !vm.is_empty() && !vm.contains('/') => files(&client, vm, path).await,
                _ => {
                    let mut names = instances(&client).await?;
                    for name in &mut names {
                        name.text.push(':');
                    }
                    Some(names)
                }
            },
        }
    })
}

/// What is claimed, the newest first: tasks, then ids.
async fn instances(client: &Client) -> Option<Vec<Name>> {
    let mut claims = client.list_claims(None).await.ok()?.items;
    claims.sort_by_key(|claim| std::cmp::Reverse(claim.claimed_at));
    let is_only = |task: &str| {
        claims
            .iter()
            .filter(|claim| claim.task_id.as_deref() == Some(task))
            .count()
            == 1
    };
    let tasks = claims.iter().filter_map(|claim| {
        let task = claim.task_id.as_deref().filter(|task| is_only(task))?;
        Some(Name {
            text: task.to_owned(),
            about: about(claim),
        })
    });
    let ids = claims.iter().map(|claim| Name {
        text: claim.id.to_string(),
        about: claim
            .task_id
            .as_ref()
            .map_or_else(|| about(claim), |task| format!("{task}, {}", about(claim))),
    });
    let mut names: Vec<Name> = tasks.chain(ids).collect();
    if !names.is_empty() {
        names.push(Name {
            text: LAST.to_owned(),
            about: "what you claimed last".to_owned(),
        });
    }
    Some(names)
}

/// `web, claimed 5 min ago`.
fn about(claim: &ClaimItem) -> String {
    format!("{}, claimed {}", claim.project_name, output::ago(claim.claimed_at))
}

/// A token that may not list projects knows those it has claims of.
async fn projects(client: &Client) -> Option<Vec<Name>> {
    let mut names: Vec<(String, String)> = match client.list_all_projects().await {
        Ok(all) => all
            .into_iter()
            .map(|project| (project.name.to_string(), project.id.to_string()))
            .collect(),
        Err(_) => {
            let claims = client.list_claims(None).await.ok()?.items;
            claims
                .into_iter()
                .map(|claim| (claim.project_name, claim.project_id.to_string()))
                .collect()
        }
    };
    names.sort();
    names.dedup();
    Some(names.into_iter().map(|(text, about)| Name { text, about }).collect())
}

/// The instance of this name; none when its VM is paused, which a question would resume.
async fn awake(client: &Client, text: &str) -> Option<InstanceId> {
    let (id, claims) = tokio::join!(resolve::instance(client, text), client.list_claims(None));
    let id = id.ok()?;
    let is_paused = claims.ok()?.items.iter().any(|claim| claim.id == id && claim.paused);
    (!is_paused).then_some(id)
}

/// Tags, and ids where there is none; those that run first.
async fn sessions(client: &Client, id: &InstanceId) -> Vec<Name> {
    let mut sessions = client.list_sessions(id).await.unwrap_or_default();
    sessions.sort_by_key(|session| session.status != SessionStatus::Running);
    let name = |session: Session| {
        let command = session.argv.join(" ");
        let text = session.tag.unwrap_or(session.id);
        let about = command.chars().take(COMMAND_CHARS).collect();
        Name { text, about }
    };
    let mut names: Vec<Name> = sessions.into_iter().map(name).collect();
    if !names.is_empty() {
        names.push(Name {
            text: LAST.to_owned(),
            about: "what was started last".to_owned(),
        });
    }
    names
}

async fn logs(client: &Client, id: &InstanceId) -> Vec<Name> {
    let logs = client.list_logs(id).await.unwrap_or_default();
    let name = |log: InstanceLog| Name {
        text: log.name,
        about: "a log".to_owned(),
    };
    logs.into_iter().map(name).collect()
}

/// The files of the folder that is typed so far.
async fn files(client: &Client, vm: &str, path: &str) -> Option<Vec<Name>> {
    let id = awake(client, vm).await?;
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let beginning = path.strip_suffix(path.rsplit('/').next()?)?;
    let asked = match folder {
        "" if path.starts_with('/') => "/",
        "" => ".",
        folder => folder,
    };
    let list = client
        .list_files(&id, asked, None, Some(1), Some(MOST_FILES))
        .await
        .ok()?;
    let names = list.items.into_iter().filter(|entry| entry.name_base64.is_none());
    Some(
        names
            .map(|entry| {
                let end = if entry.kind == FileKind::Directory { "/" } else { "" };
                Name {
                    text: format!("{vm}:{beginning}{}{end}", entry.name),
                    about: String::new(),
                }
            })
            .collect(),
    )
}
