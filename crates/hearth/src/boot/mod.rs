//! Following the boot of one instance: live over the event stream, and by asking again and again where the stream breaks.

mod screen;

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use hearth_api::client::{Client, ClientError};
use hearth_api::ids::{InstanceId, ProjectId};
use hearth_api::instance::{
    FAILURE_KEY, FollowEvent, InstanceDetail, InstanceStatus, Step, StepStatus, failure_with_names,
};

use crate::failure::{EXIT_NO_SERVER, Failure};
use crate::output;
use crate::text::{clean_line, last_lines};

pub(crate) use screen::Screen;

/// Pause between two checks when there is no stream.
const POLL_PAUSE: Duration = Duration::from_secs(1);
/// How often it is looked whether nothing was said for long.
const CLOCK: Duration = Duration::from_secs(1);
/// How long a server may be away (a restart, say) before we stop asking.
const MAX_AWAY: Duration = Duration::from_secs(60);
/// Lines of a failed step's output that are shown; the record has all.
const LAST_LINES: usize = 20;

/// Shows the boot until it is over and gives the instance's record then.
pub(crate) async fn follow(
    client: &Client,
    project: &ProjectId,
    id: &InstanceId,
    screen: &mut Screen,
) -> Result<InstanceDetail, Failure> {
    loop {
        let shown = match follow_stream(client, id, screen).await {
            Ok(()) => usize::MAX,
            Err(Broken { shown }) => {
                screen.note("the live log stopped; asking every second instead");
                shown
            }
        };
        match poll(client, project, id, screen, shown).await? {
            Polled::Over(detail) => {
                screen.finish(&detail.steps);
                return Ok(*detail);
            }
            // The live log begins with what has happened so far.
            Polled::Back => screen.forget(),
        }
    }
}

/// How asking ended.
enum Polled {
    /// The boot is over.
    Over(Box<InstanceDetail>),
    /// The server was away and answers again, and the boot is not over: it has a live log.
    Back,
}

/// The stream ended too early.
struct Broken {
    /// Steps whose end has been shown.
    shown: usize,
}

async fn follow_stream(client: &Client, id: &InstanceId, screen: &mut Screen) -> Result<(), Broken> {
    let mut shown = 0;
    let mut events = client.follow(id).await.map_err(|_| Broken { shown })?;
    let mut clock = tokio::time::interval(CLOCK);
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            _ = clock.tick() => {
                screen.tick();
                continue;
            }
        };
        let Some(event) = event else { return Ok(()) };
        match event.map_err(|_| Broken { shown })? {
            FollowEvent::StepStarted { name, subject, ran_ms } => {
                screen.step_started(&name, subject.as_deref(), Duration::from_millis(ran_ms));
            }
            FollowEvent::CommandStarted {
                subject,
                command,
                ran_ms,
                silent_ms,
            } => {
                let silent = silent_ms.map(Duration::from_millis);
                screen.command_started(subject.as_deref(), &command, Duration::from_millis(ran_ms), silent);
            }
            FollowEvent::Output { subject, text } => screen.output(subject.as_deref(), &text),
            FollowEvent::StepEnded { step } => {
                screen.step_ended(&step);
                shown += 1;
            }
            FollowEvent::Ended { .. } => return Ok(()),
        }
    }
}

/// Asks for the record until the boot is over or the server is back, and shows the steps that were not shown yet.
async fn poll(
    client: &Client,
    project: &ProjectId,
    id: &InstanceId,
    screen: &mut Screen,
    mut shown: usize,
) -> Result<Polled, Failure> {
    let mut last_answer = Instant::now();
    let mut is_away = false;
    loop {
        match client.get_instance(project, id).await {
            Ok(detail) => {
                last_answer = Instant::now();
                if std::mem::take(&mut is_away) {
                    screen.note("the server answers again");
                    if detail.status == InstanceStatus::Provisioning {
                        if shown != usize::MAX && detail.steps.len() < shown {
                            screen.note(
                                "it was restarted: the boot continues from what was frozen of it, or starts again where nothing was",
                            );
                        }
                        return Ok(Polled::Back);
                    }
                }
                for step in detail.steps.iter().skip(shown) {
                    screen.step_ended(step);
                }
                shown = shown.max(detail.steps.len());
                if detail.status != InstanceStatus::Provisioning {
                    return Ok(Polled::Over(Box::new(detail)));
                }
            }
            Err(error) if error.is_not_found() => {
                return Err(Failure::new("the instance was removed while it was being made")
                    .hint("the pool was cleared or the project deleted; start again"));
            }
            Err(error @ ClientError::Api { .. }) if error.code() != Some(hearth_api::error::ErrorCode::Unavailable) => {
                return Err(error.into());
            }
            Err(error) if last_answer.elapsed() > MAX_AWAY => {
                return Err(Failure::from(error)
                    .with_code(EXIT_NO_SERVER)
                    .detail("the boot continues in the server if that is alive"));
            }
            Err(_) if !is_away => {
                is_away = true;
                let limit = output::whole_seconds(MAX_AWAY);
                screen.note(&format!("the server does not answer; asking again for {limit}"));
            }
            Err(_) => {}
        }
        // What ran when the server was last heard of may be over.
        if !is_away {
            screen.tick();
        }
        tokio::time::sleep(POLL_PAUSE).await;
    }
}

/// What of a step was taken from a checkpoint instead of being done: what it printed is older than this boot.
fn from_a_checkpoint(step: &Step) -> Option<String> {
    let metadata = step.metadata.as_ref()?;
    let is_cached = |value: &serde_json::Value| value.get("cached").is_some_and(|cached| cached == true);
    if is_cached(metadata) {
        return Some("from a checkpoint".to_owned());
    }
    let commands = metadata.get("commands")?.as_array()?;
    let cached = commands.iter().filter(|command| is_cached(command));
    let names: Vec<&str> = cached.filter_map(|command| command.get("name")?.as_str()).collect();
    (!names.is_empty()).then(|| clean_line(&format!("{} from a checkpoint", names.join(", "))))
}

/// The repository that a step worked on.
pub(crate) fn repo_of(step: &Step) -> Option<&str> {
    fact(step, "repo")
}

/// A text in the metadata of a step.
fn fact<'a>(step: &'a Step, key: &str) -> Option<&'a str> {
    step.metadata.as_ref()?.get(key)?.as_str()
}

/// What a step worked on, for people: its repository (and which of its scripts), or its commands.
pub(crate) fn subject_of(step: &Step) -> Option<String> {
    let metadata = step.metadata.as_ref()?;
    if let Some(repo) = repo_of(step) {
        return Some(match metadata.get("script").and_then(|script| script.as_str()) {
            Some(script) => format!("{repo} ({script})"),
            None => repo.to_owned(),
        });
    }
    let commands = metadata.get("commands")?.as_array()?;
    let names: Vec<&str> = commands
        .iter()
        .filter_map(|command| {
            command
                .as_str()
                .or_else(|| command.get("name").and_then(|name| name.as_str()))
        })
        .collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// A step and what it works on, in one line that is safe to show.
fn title(name: &str, subject: Option<&str>) -> String {
    match subject {
        Some(subject) => clean_line(&format!("{name} {subject}")),
        None => clean_line(name),
    }
}

/// Why it failed: the step, the command in it and how that ended.
pub(crate) fn failure(detail: &InstanceDetail) -> Option<String> {
    let reason = detail.failure_reason.as_deref().or(detail.summary.error.as_deref())?;
    let named = failed_step(detail).filter(|step| fact(step, FAILURE_KEY).is_some());
    Some(match (named, &detail.summary.failed_step) {
        (Some(_), _) => failure_with_names(&detail.steps, reason),
        (None, Some(step)) => format!("{}: {reason}", failed_title(detail, step)),
        // It was no step's fault: the server was stopped in the middle, say.
        (None, None) => reason.to_owned(),
    })
}

/// The failed step's name, with its repository where it has one: of several, it may be any.
fn failed_title(detail: &InstanceDetail, name: &str) -> String {
    let failed = failed_step(detail).filter(|step| step.name == name && repo_of(step).is_some());
    title(name, failed.and_then(subject_of).as_deref())
}

pub(crate) fn failed_step(detail: &InstanceDetail) -> Option<&Step> {
    detail.steps.iter().find(|step| step.status == StepStatus::Error)
}

/// The steps as a table, with the time of each.
pub(crate) fn table(detail: &InstanceDetail) -> String {
    let row = |step: &Step| {
        let took = step.duration_ms.map_or_else(|| "-".to_owned(), output::millis);
        let result = match (step.status, from_a_checkpoint(step)) {
            (StepStatus::Success, Some(cached)) => format!("ok, {cached}"),
            (StepStatus::Success, None) => "ok".to_owned(),
            (StepStatus::Error, _) => "FAILED".to_owned(),
        };
        [
            step.name.clone(),
            clean_line(&subject_of(step).unwrap_or_default()),
            result,
            took,
        ]
    };
    let total = [
        String::new(),
        "total".to_owned(),
        String::new(),
        output::millis(detail.summary.total_duration_ms),
    ];
    output::table(
        ["Step", "What", "Result", "Took"],
        detail.steps.iter().map(row).chain([total]),
    )
}

/// The end of what the failed step printed, indented.
pub(crate) fn failed_output(detail: &InstanceDetail) -> Vec<String> {
    let Some(text) = failed_step(detail).and_then(|step| step.output.as_deref()) else {
        return Vec::new();
    };
    last_lines(text, LAST_LINES)
}
