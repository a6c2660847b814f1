//! A boot, followed live: the eight steps with their times beside those of the last boot that succeeded, what is printed while it is
//! printed, and the failed step with its error on top.

use axum::extract::Request;
use axum::http::Method;
use axum::response::{IntoResponse as _, Redirect, Response};
use hearth_api::history::{BootDetail, History};
use hearth_api::ids::{InstanceId, ProjectId};
use hearth_api::instance::{
    BootEnded, InstanceDetail, InstanceStatus, Step, StepName, StepStatus, failure_with_names, interruption_of,
};
use hearth_api::pool::TestReply;
use hearth_api::project::ProjectView;
use hearth_api::token::Scope;
use hearth_core::purpose::Purpose;
use jiff::Timestamp;
use maud::{Markup, html};

use super::done::{self, Done};
use super::form::{Fields, Named, Posted};
use super::frame::{self, Frame, Section, proof_field};
use super::parts::{self, Tone, badge};
use super::pool::{head, or_say};
use super::refusal::Refusal;
use super::session::PROOF_FIELD;
use super::visitor::Visitor;

/// Boots of the history among which the last that succeeded is looked for.
const BOOTS: usize = 200;

/// A boot, and what it is held against.
struct Boot {
    project: ProjectId,
    detail: InstanceDetail,
    /// The last boot before it that succeeded.
    before: Option<BootDetail>,
}

impl Boot {
    /// As a page shows it first.
    async fn of(visitor: &Visitor, project: &ProjectId, id: &InstanceId) -> Result<Self, Refusal> {
        let detail = detail(visitor, project, id).await?;
        let before = last_success(visitor, project, &detail).await?;
        Self::beside(visitor, project, detail, before).await
    }

    /// As its page follows it: `before` was looked for when the page was made.
    async fn followed(
        visitor: &Visitor,
        project: &ProjectId,
        id: &InstanceId,
        before: Option<InstanceId>,
    ) -> Result<Self, Refusal> {
        let detail = detail(visitor, project, id).await?;
        Self::beside(visitor, project, detail, before).await
    }

    async fn beside(
        visitor: &Visitor,
        project: &ProjectId,
        detail: InstanceDetail,
        before: Option<InstanceId>,
    ) -> Result<Self, Refusal> {
        let before = match before {
            // It may be removed this moment.
            Some(id) => visitor.get(&format!("/projects/{project}/history/{id}")).await.ok(),
            None => None,
        };
        Ok(Self {
            project: project.clone(),
            detail,
            before,
        })
    }

    fn runs(&self) -> bool {
        self.detail.status == InstanceStatus::Provisioning
    }

    fn href(&self) -> String {
        format!("/projects/{}/boots/{}", self.project, self.detail.id)
    }

    /// Where its page asks for what moved.
    fn live_href(&self) -> String {
        let before = self.before.as_ref().map(|before| format!("?before={}", before.boot.id));
        format!("{}/steps{}", self.href(), before.unwrap_or_default())
    }
}

async fn detail(visitor: &Visitor, project: &ProjectId, id: &InstanceId) -> Result<InstanceDetail, Refusal> {
    let path = format!("/projects/{project}/warm-pool/instances/{id}");
    visitor.get(&path).await
}

/// The last boot before this one that succeeded and says how long the steps take.
async fn last_success(
    visitor: &Visitor,
    project: &ProjectId,
    detail: &InstanceDetail,
) -> Result<Option<InstanceId>, Refusal> {
    let until = hearth_api::time::format(detail.created_at);
    let path = format!("/projects/{project}/history?limit={BOOTS}&before={until}");
    let history: History = visitor.get(&path).await?;
    let ready = || {
        history
            .boots
            .iter()
            .filter(|boot| boot.outcome.as_deref() == Some("ready"))
    };
    // A fork of the template hardly does anything: it is held against others of its kind alone.
    let whole = ready().find(|boot| {
        boot.purpose
            .parse()
            .is_ok_and(|purpose: Purpose| !purpose.serves_claims())
    });
    let found = whole.or_else(|| ready().next().filter(|_| !detail.is_test));
    Ok(found.map(|boot| boot.id.clone()))
}

/// How one of the eight steps is.
enum StepState {
    Done {
        cached: bool,
    },
    Failed,
    Running {
        ran: String,
        what: Option<String>,
    },
    Waiting,
    Unneeded,
    /// One before it failed.
    NotReached,
}

/// `POST /projects/{project}/test`.
pub async fn start(Named(id): Named<ProjectId>, Posted { visitor, fields }: Posted) -> Result<Response, Refusal> {
    let cache = if fields.has("fresh") { "?cache=false" } else { "" };
    let path = format!("/projects/{id}/warm-pool/test{cache}");
    match visitor.order::<TestReply>(Method::POST, &path).await {
        Ok(reply) => Ok(Redirect::to(&format!("/projects/{id}/boots/{}", reply.id)).into_response()),
        Err(refusal) => or_say::<()>(&visitor, &id, Err(refusal), Done::Saved).await,
    }
}

/// `GET /projects/{project}/boots/{instance}`.
pub async fn show(
    Named(project): Named<ProjectId>,
    Named(id): Named<InstanceId>,
    visitor: Visitor,
    query: Fields,
) -> Result<Response, Refusal> {
    let view: ProjectView = visitor.get(&format!("/projects/{project}/view")).await?;
    let panel = panel(&visitor, &project, &id).await?;
    let body = html! {
        (head(&view, None))
        (done::notice(&query))
        (panel)
    };
    let title = format!("Boot {} of {}", parts::short_id(id.as_str()), view.name);
    Ok(Frame::new(&visitor, Section::Projects, &title).show(&body))
}

/// A boot in a page of any kind.
pub async fn panel(visitor: &Visitor, project: &ProjectId, id: &InstanceId) -> Result<Markup, Refusal> {
    let boot = Boot::of(visitor, project, id).await?;
    let events = format!("{}/events?{PROOF_FIELD}={}", boot.href(), visitor.proof);
    Ok(html! {
        section #boot aria-labelledby="boot-title" {
            h2 #boot-title {
                @if boot.detail.is_test { "Test boot " } @else { "Boot " }
                code title=(id.as_str()) { (parts::short_id(id.as_str())) }
            }
            (steps_part(visitor, &boot))
            @if boot.runs() {
                section.live data-events=(events) aria-labelledby="output-title" {
                    h3 #output-title { "Output" }
                    pre #output tabindex="0" aria-label="Output of the boot" {}
                }
            }
        }
    })
}

/// `GET …/steps`: what moves.
pub async fn live(
    Named(project): Named<ProjectId>,
    Named(id): Named<InstanceId>,
    visitor: Visitor,
    query: Fields,
) -> Result<Response, Refusal> {
    let before = query.get("before").and_then(|id| id.parse().ok());
    let boot = Boot::followed(&visitor, &project, &id, before).await?;
    Ok(frame::part(steps_part(&visitor, &boot)))
}

fn steps_part(visitor: &Visitor, boot: &Boot) -> Markup {
    let detail = &boot.detail;
    let trigger = boot.runs().then_some("every 2s, refresh");
    let longest = StepName::ALL.into_iter().map(|name| {
        let before = boot.before.as_ref().map_or(0, |before| took(&before.steps, name));
        took(&detail.steps, name).max(before)
    });
    let longest = longest.max().unwrap_or(1);
    html! {
        div #steps hx-get=[trigger.map(|_| boot.live_href())] hx-trigger=[trigger] hx-swap="outerMorph"
            data-status=(detail.status.as_str()) {
            p.summary role="status" {
                (parts::status_of(detail.status, detail.is_test)) " "
                span.dim {
                    "begun " (parts::time(detail.created_at)) ", "
                    @if boot.runs() { (parts::millis(since(detail.created_at))) " so far" }
                    @else { (parts::millis(detail.summary.total_duration_ms)) }
                }
            }
            @if let Some(text) = interruption_of(&detail.steps) { div.notice { p { (text) } } }
            @if let Some(reason) = &detail.failure_reason { (failure(boot, reason)) }
            @if boot.runs() && visitor.may(Scope::ProjectWrite) {
                form method="post" action=(format!("{}/cancel", boot.href())) {
                    (proof_field(visitor))
                    button type="submit" { "End this boot" }
                }
            }
            ol.timeline {
                @for name in StepName::ALL { (step(visitor, boot, name, longest)) }
            }
            @if let Some(before) = &boot.before {
                p.help {
                    "The lighter bar is what the step took in "
                    a href=(format!("/projects/{}/history/{}", boot.project, before.boot.id)) { "the last boot before it that succeeded" }
                    " (" (parts::time(before.boot.ordered_at)) ", " (parts::millis(total(&before.steps))) ")."
                }
            }
        }
    }
}

/// Whole seconds from then until now, in milliseconds.
fn since(at: Timestamp) -> u64 {
    let seconds = Timestamp::now().duration_since(at).as_secs();
    u64::try_from(seconds).unwrap_or_default() * 1000
}

/// Why it failed, and what to do about it.
fn failure(boot: &Boot, reason: &str) -> Markup {
    html! {
        div.notice.bad role="alert" {
            p { strong { (failure_with_names(&boot.detail.steps, reason)) } }
            p {
                a href=(format!("/projects/{}/setup", boot.project)) { "Change the set-up" }
                " and test again: only what changed, and what comes after it, runs then."
            }
        }
    }
}

fn of(steps: &[Step], name: StepName) -> impl Iterator<Item = &Step> {
    steps.iter().filter(move |step| step.name == name.as_str())
}

fn took(steps: &[Step], name: StepName) -> u64 {
    of(steps, name).filter_map(|step| step.duration_ms).sum()
}

fn total(steps: &[Step]) -> u64 {
    steps.iter().filter_map(|step| step.duration_ms).sum()
}

fn state(visitor: &Visitor, boot: &Boot, name: StepName) -> StepState {
    let detail = &boot.detail;
    if of(&detail.steps, name).any(|step| step.status == StepStatus::Error) {
        return StepState::Failed;
    }
    if boot.runs() {
        let progress = visitor.state.live_logs.progress(&detail.id);
        if let Some(running) = progress.into_iter().find(|running| running.step == name) {
            let what = running.command.map(String::from).or(running.subject);
            let ran = u64::try_from(running.ran.as_millis()).unwrap_or_default();
            return StepState::Running {
                ran: parts::millis(ran / 100 * 100),
                what,
            };
        }
    }
    let mut entries = of(&detail.steps, name).peekable();
    if entries.peek().is_some() {
        return StepState::Done {
            cached: entries.all(is_cached),
        };
    }
    let is_passed = detail
        .steps
        .iter()
        .any(|step| position(&step.name) > position(name.as_str()));
    match boot.detail.status {
        _ if is_passed => StepState::Unneeded,
        InstanceStatus::Provisioning => StepState::Waiting,
        InstanceStatus::Failed => StepState::NotReached,
        InstanceStatus::Ready | InstanceStatus::Claimed => StepState::Unneeded,
    }
}

fn position(name: &str) -> Option<usize> {
    StepName::ALL.iter().position(|step| step.as_str() == name)
}

/// Whether all of a step came from a checkpoint.
fn is_cached(step: &Step) -> bool {
    let cached = |value: &serde_json::Value| value.get("cached").is_some_and(|cached| cached == true);
    let Some(metadata) = &step.metadata else { return false };
    let commands = metadata.get("commands").and_then(|commands| commands.as_array());
    cached(metadata) || commands.is_some_and(|all| !all.is_empty() && all.iter().all(cached))
}

fn step(visitor: &Visitor, boot: &Boot, name: StepName, longest: u64) -> Markup {
    let (class, mark, word) = match state(visitor, boot, name) {
        StepState::Done { cached: true } => ("done", "✓", "from a checkpoint".to_owned()),
        StepState::Done { cached: false } => ("done", "✓", done_word(&boot.detail, name)),
        StepState::Failed => ("failed", "✗", "failed".to_owned()),
        StepState::Running { ran, what: Some(what) } => ("running", "…", format!("running for {ran}: {what}")),
        StepState::Running { ran, what: None } => ("running", "…", format!("running for {ran}")),
        StepState::Waiting => ("waiting", "·", "waiting".to_owned()),
        StepState::Unneeded => ("unneeded", "–", "nothing to do".to_owned()),
        StepState::NotReached => ("waiting", "·", "not reached".to_owned()),
    };
    let (now, before) = (
        took(&boot.detail.steps, name),
        boot.before.as_ref().map(|before| took(&before.steps, name)),
    );
    html! {
        li #(format!("step-{}", name.as_str())).(class) data-step=(name.as_str()) {
            div.step {
                span.mark aria-hidden="true" { (mark) }
                span.name { code { (name.as_str()) } " " span.dim { (word) } }
                span.bars aria-hidden="true" {
                    @if matches!(class, "done" | "failed") { progress max=(longest.max(1)) value=(now) {} }
                    @if let Some(before) = before { progress.before max=(longest.max(1)) value=(before) {} }
                }
                span.took {
                    @if class == "done" || class == "failed" { (parts::millis(now)) }
                    @if let Some(before) = before { " " span.dim title="the last boot before it that succeeded" { "(" (parts::millis(before)) ")" } }
                }
            }
            @for (at, entry) in of(&boot.detail.steps, name).enumerate() {
                @if has_more(entry) { (self::entry(name, at, entry)) }
            }
        }
    }
}

/// `done`, and what of it was not run again.
fn done_word(detail: &InstanceDetail, name: StepName) -> String {
    let commands = of(&detail.steps, name).filter_map(|step| step.metadata.as_ref()?.get("commands")?.as_array());
    let cached = commands.flatten().filter(|command| command["cached"] == true);
    let names: Vec<&str> = cached.filter_map(|command| command["name"].as_str()).collect();
    match names.is_empty() {
        true => "done".to_owned(),
        false => format!("done; {} from a checkpoint", names.join(", ")),
    }
}

/// Whether an entry says more than how long its step took.
fn has_more(entry: &Step) -> bool {
    let printed = entry.output.as_deref().is_some_and(|output| !output.trim().is_empty());
    printed || entry.error.is_some() || subject(entry).is_some()
}

/// One entry of the log.
fn entry(name: StepName, at: usize, entry: &Step) -> Markup {
    let failed = entry.status == StepStatus::Error;
    let id = format!("entry-{}-{at}{}", name.as_str(), if failed { "-failed" } else { "" });
    html! {
        details #(id) open[failed] {
            summary {
                (subject(entry).unwrap_or_else(|| "Log".to_owned()))
                @if is_cached(entry) { " " (badge(Tone::Off, "from a checkpoint")) }
                @if failed { " " (badge(Tone::Bad, "failed")) }
                @if let Some(ms) = entry.duration_ms { " " span.dim { (parts::millis(ms)) } }
            }
            @if let Some(error) = &entry.error { pre.error tabindex="0" { (parts::plain(error)) } }
            (commands(entry))
            @match entry.output.as_deref().filter(|output| !output.trim().is_empty()) {
                Some(output) => pre tabindex="0" { (parts::plain(output)) },
                None => p.dim { "It printed nothing." },
            }
        }
    }
}

/// The commands of a step: which ran now, and which were not run again.
fn commands(entry: &Step) -> Markup {
    let all = entry
        .metadata
        .as_ref()
        .and_then(|metadata| metadata.get("commands")?.as_array());
    let named = all
        .into_iter()
        .flatten()
        .filter(|command| command.get("name").is_some());
    html! {
        ul.ran {
            @for command in named {
                li {
                    code { (command["name"].as_str().unwrap_or_default()) }
                    @if command["cached"] == true { " " (badge(Tone::Off, "from a checkpoint")) }
                    @else if command["background"] == true { " " (badge(Tone::Busy, "in the background")) }
                    @if let Some(code) = command["exitCode"].as_i64().filter(|code| *code != 0) { " " (badge(Tone::Bad, &format!("exit code {code}"))) }
                    @if let Some(ms) = command["durationMs"].as_u64() { " " span.dim { (parts::millis(ms)) } }
                }
            }
        }
    }
}

/// What a step worked on: its repository and script, or its commands.
fn subject(step: &Step) -> Option<String> {
    let metadata = step.metadata.as_ref()?;
    let fact = |key: &str| metadata.get(key).and_then(|value| value.as_str());
    if let Some(repo) = fact("repo") {
        return Some(match fact("script") {
            Some(script) => format!("{repo} ({script})"),
            None => repo.to_owned(),
        });
    }
    let commands = metadata.get("commands")?.as_array()?;
    let names: Vec<&str> = commands
        .iter()
        .filter_map(|command| command.as_str().or_else(|| command.get("name")?.as_str()))
        .collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// `GET …/events`: the API's live log.
pub async fn events(Named(id): Named<InstanceId>, visitor: Visitor, request: Request) -> Result<Response, Refusal> {
    visitor.pass(request, &format!("/instances/{id}/follow")).await
}

/// `POST …/cancel`.
pub async fn cancel(
    Named(project): Named<ProjectId>,
    Named(id): Named<InstanceId>,
    Posted { visitor, .. }: Posted,
) -> Result<Response, Refusal> {
    let _: BootEnded = visitor.order(Method::DELETE, &format!("/instances/{id}")).await?;
    Ok(Done::Cancelled.at(&format!("/projects/{project}/boots/{id}")))
}
