//! The set-up editor: commands in their order, scripts of the repositories with their time limits, and "test this" in place. What did not
//! change is not run again: a test boot begins at the longest prefix that is frozen.

use axum::http::Method;
use axum::response::{IntoResponse as _, Redirect, Response};
use hearth_api::ids::{InstanceId, ProjectId};
use hearth_api::pool::{PatchPoolReply, PoolView, SetupCommand, TestReply};
use hearth_api::project::{Project, ProjectView, VmSize};
use hearth_api::setup::{
    DEFAULT_SCRIPT_SECONDS, ImportedRepository, LegacyStatus, RepoSetup, SetupImport, SetupSource, SetupView,
};
use hearth_api::token::Scope;
use maud::{Markup, html};
use serde_json::{Value, json};

use super::boot;
use super::done::{self, Done};
use super::form::{Fields, Named, Posted};
use super::frame::{Frame, Section, proof_field};
use super::pool::{Tab, head};
use super::project::refused;
use super::refusal::Refusal;
use super::variables;
use super::visitor::Visitor;

/// The phases of a repository's scripts: the API's name, the label, and when it runs.
const PHASES: [(&str, &str, &str); 3] = [
    ("initialize", "Initialize", "once, in a fresh VM"),
    (
        "updateAfterCheckout",
        "Update after checkout",
        "at a claim that moved the checkout",
    ),
    ("startup", "Startup", "when the VM becomes ready: starts services"),
];

/// Rows of commands as they are being edited.
type Rows = Vec<Row>;

/// A command as it stands in the form.
#[derive(Default)]
struct Row {
    name: String,
    text: String,
    background: bool,
    /// Seconds, as they were typed; empty: the server's limit.
    limit: String,
}

/// `GET /projects/{project}/setup`.
pub async fn show(Named(id): Named<ProjectId>, visitor: Visitor, query: Fields) -> Result<Response, Refusal> {
    let tested: Option<InstanceId> = query.get("boot").and_then(|id| id.parse().ok());
    let imported: Option<SetupImport> = match query.has("import") {
        true => Some(visitor.get(&format!("/projects/{id}/setup/import")).await?),
        false => None,
    };
    let shown = Shown {
        imported,
        ..Shown::default()
    };
    page(&visitor, &id, &done::notice(&query), shown, tested.as_ref()).await
}

/// What stands in the forms in place of what is saved.
#[derive(Default)]
pub struct Shown {
    /// What stood in a form that was refused.
    edited: Option<Rows>,
    /// What the repositories say.
    imported: Option<SetupImport>,
}

impl Shown {
    fn edited(rows: Rows) -> Self {
        Self {
            edited: Some(rows),
            imported: None,
        }
    }
}

pub async fn page(
    visitor: &Visitor,
    id: &ProjectId,
    notice: &Markup,
    Shown { edited, imported }: Shown,
    tested: Option<&InstanceId>,
) -> Result<Response, Refusal> {
    let project: ProjectView = visitor.get(&format!("/projects/{id}/view")).await?;
    let pool: PoolView = visitor.get(&format!("/projects/{id}/warm-pool")).await?;
    let mut setup: SetupView = visitor.get(&format!("/projects/{id}/setup")).await?;
    let mut of_imports = Rows::new();
    for one in imported.iter().flat_map(|imported| &imported.repositories) {
        of_imports.extend(rows_of(&one.setup_commands));
        propose(&mut setup, one);
    }
    let edited = edited.or_else(|| (!of_imports.is_empty()).then_some(of_imports));
    let of_pool = pool.config.as_ref().and_then(|config| config.setup_commands.as_deref());
    let rows = edited.unwrap_or_else(|| rows_of(of_pool.unwrap_or_default()));
    let of_project = rows_of(project.project_setup.as_deref().unwrap_or_default());
    let boot = match tested {
        Some(tested) => Some(boot::panel(visitor, id, tested).await?),
        None => None,
    };
    let may_write = visitor.may(Scope::ProjectWrite);
    let usual_limit = visitor.state.command_timeout.as_secs();
    let body = html! {
        (head(&project, Some(Tab::Setup)))
        (notice)
        (import(id, imported.as_ref(), may_write))
        section.card aria-labelledby="commands-title" {
            h2 #commands-title { "Set-up commands" }
            p.help {
                "They run last, in this order, from " code { "/home" } " as root, each as one " code { "bash -eo pipefail" }
                ". Each ends within its time limit, or the server's; one in the background is started and left running."
            }
            form.stacked method="post" action=(format!("/projects/{id}/setup/commands")) {
                (proof_field(visitor))
                (commands(&rows, "build", usual_limit))
                @if may_write {
                    div.buttons {
                        button.main type="submit" name="do" value="test" { "Save and test" }
                        button type="submit" name="do" value="save" { "Save" }
                        label.check { input type="checkbox" name="fresh" value="yes"; " run every step" }
                    }
                }
            }
        }
        @if let Some(boot) = boot { (boot) }
        (variables::section(visitor, id).await?)
        section.card aria-labelledby="project-title" {
            h2 #project-title { "Commands of the project" }
            p.help { "They run before those above, in every VM of the project, as the step " code { "project_setup" } "." }
            form.stacked method="post" action=(format!("/projects/{id}/setup/project")) {
                (proof_field(visitor))
                (commands(&of_project, "tools", usual_limit))
                @if may_write { div.buttons { button.main type="submit" { "Save" } } }
            }
        }
        (object(visitor, id, &setup))
    };
    let title = format!("Set-up of {}", project.name);
    Ok(Frame::new(visitor, Section::Projects, &title).show(&body))
}

/// What a repository says, in place of what is saved; what it says nothing of stays.
fn propose(setup: &mut SetupView, imported: &ImportedRepository) {
    if let Some(size) = imported.vm_size {
        setup.setup.vm_size = Some(setup.setup.vm_size.map_or(size, |saved| saved.max(size)));
    }
    let repositories = setup.setup.repositories.iter_mut();
    for repo in repositories.filter(|repo| *repo.repository == *imported.repository) {
        let scripts = &imported.scripts;
        for (saved, said) in [
            (&mut repo.scripts.update_after_checkout, &scripts.update_after_checkout),
            (&mut repo.scripts.startup, &scripts.startup),
        ] {
            if said.is_some() {
                saved.clone_from(said);
            }
        }
    }
}

/// What the repositories say about their set-up: asked for by a link, shown to be looked over.
fn import(id: &ProjectId, imported: Option<&SetupImport>, may_write: bool) -> Markup {
    html! {
        section.card aria-labelledby="import-title" {
            h2 #import-title { "Import" }
            @match imported {
                None => {
                    p.help {
                        "A " code { "devcontainer.json" } ", " code { "copilot-setup-steps.yml" } ", " code { ".cursor/environment.json" }
                        ", a Dockerfile, tool versions or lock files in the repositories can become the set-up."
                    }
                    div.buttons { a.button href=(format!("/projects/{id}/setup?import=yes")) { "Read the repositories" } }
                }
                Some(imported) => {
                    @for repo in &imported.repositories { (told(repo)) }
                    @if imported.repositories.is_empty() { p { "The project has no repository." } }
                    @else if may_write {
                        p { "Nothing is saved yet: what was taken stands in the forms below. Look it over, and save each form." }
                    }
                }
            }
        }
    }
}

/// What was read in a repository.
fn told(repo: &ImportedRepository) -> Markup {
    html! {
        h3 { (repo.repository) " " span.dim { (repo.branch) } }
        @if let Some(problem) = &repo.problem { div.notice.bad role="alert" { p { (problem) } } }
        @else if repo.files.is_empty() { p { "No file in it says how it is set up." } }
        @if !repo.taken.is_empty() { p { "Taken:" } ul { @for line in &repo.taken { li { (line) } } } }
        @if !repo.not_taken.is_empty() { p { "Not taken:" } ul { @for line in &repo.not_taken { li { (line) } } } }
    }
}

fn rows_of(commands: &[SetupCommand]) -> Rows {
    let rows = commands.iter().map(|one| Row {
        name: one.name.to_string(),
        text: one.command.to_string(),
        background: one.background.unwrap_or_default(),
        limit: one
            .timeout_seconds
            .map(|seconds| seconds.to_string())
            .unwrap_or_default(),
    });
    rows.collect()
}

/// The editor of a list of commands. The order of the rows is the order in which they run.
fn commands(rows: &Rows, example: &str, usual_limit: u64) -> Markup {
    let blank = Row::default();
    html! {
        ol.commands data-rows="" {
            @for Row { name, text, background, limit } in rows.iter().chain(std::iter::once(&blank)) {
                li.command data-row="" {
                    label.name { span { "Name" } input name="name" value=(name) maxlength="191" placeholder=(example); }
                    label.text {
                        span { "Command" }
                        textarea name="command" rows=(text.lines().count().clamp(2, 12)) spellcheck="false" { (text) }
                    }
                    label.how {
                        span { "How" }
                        select name="background" {
                            option value="no" selected[!*background] { "wait for its end" }
                            option value="yes" selected[*background] { "in the background" }
                        }
                    }
                    label.limit {
                        span { "Time limit, s" }
                        input type="number" name="limit" min="1" max="86400" value=(limit)
                            placeholder=(if *background { "none".to_owned() } else { usual_limit.to_string() });
                    }
                    div.moves {
                        button.quiet type="button" data-move="up" aria-label="Move up" { "↑" }
                        button.quiet type="button" data-move="down" aria-label="Move down" { "↓" }
                        button.quiet type="button" data-remove="" { "Remove" }
                    }
                }
            }
        }
        p.hidden role="status" data-moved="" {}
        button.quiet type="button" data-add="" { "Add a command" }
    }
}

/// The commands of a form: rows in which nothing stands are none.
fn rows_in(fields: &Fields) -> Rows {
    let said = fields.all("name").zip(fields.all("command"));
    // A form without limits says nothing of them.
    let limits = fields.all("limit").chain(std::iter::repeat(""));
    let how = fields.all("background").zip(limits);
    let rows = said.zip(how).map(|((name, text), (how, limit))| Row {
        name: name.trim().to_owned(),
        text: text.to_owned(),
        background: how == "yes",
        limit: limit.trim().to_owned(),
    });
    rows.filter(|row| !row.name.is_empty() || !row.text.trim().is_empty())
        .collect()
}

fn to_json(rows: &Rows) -> Value {
    let commands = rows.iter().map(|row| {
        let mut command = json!({ "name": row.name, "command": row.text });
        if row.background {
            command["background"] = true.into();
        }
        if !row.limit.is_empty() {
            command["timeoutSeconds"] = seconds(&row.limit);
        }
        command
    });
    commands.collect::<Vec<Value>>().into()
}

/// What was typed as a number; what is none stays a text, which the API refuses.
fn seconds(typed: &str) -> Value {
    typed.trim().parse::<i64>().map_or_else(|_| typed.into(), Into::into)
}

/// `POST …/setup/commands`.
pub async fn save_commands(
    Named(id): Named<ProjectId>,
    Posted { visitor, fields }: Posted,
) -> Result<Response, Refusal> {
    let rows = rows_in(&fields);
    let body = json!({ "setupCommands": to_json(&rows) });
    let href = format!("/projects/{id}/setup");
    let done = if fields.get("do") == Some("test") {
        let cache = if fields.has("fresh") { "?cache=false" } else { "" };
        let path = format!("/projects/{id}/warm-pool/test{cache}");
        let begun: Result<TestReply, _> = visitor.send(Method::POST, &path, &body).await;
        begun.map(|reply| Redirect::to(&format!("{href}?boot={}#boot", reply.id)).into_response())
    } else {
        let path = format!("/projects/{id}/warm-pool");
        let saved: Result<PatchPoolReply, _> = visitor.send(Method::PATCH, &path, &body).await;
        saved.map(|_| Done::Saved.at(&href))
    };
    match done {
        Ok(response) => Ok(response),
        Err(refusal) => {
            let page = page(&visitor, &id, &refusal.notice(), Shown::edited(rows), None).await?;
            Ok(refused(page, Some(&refusal)))
        }
    }
}

/// `POST …/setup/project`.
pub async fn save_project_commands(
    Named(id): Named<ProjectId>,
    Posted { visitor, fields }: Posted,
) -> Result<Response, Refusal> {
    let rows = rows_in(&fields);
    let commands = if rows.is_empty() { Value::Null } else { to_json(&rows) };
    let body = json!({ "projectSetup": commands });
    let saved: Result<Project, _> = visitor.send(Method::PATCH, &format!("/projects/{id}"), &body).await;
    or_say(&visitor, &id, saved).await
}

fn object(visitor: &Visitor, id: &ProjectId, view: &SetupView) -> Markup {
    let source = match view.source {
        SetupSource::Setup => "The setup object below is saved and holds for future VMs.",
        SetupSource::Legacy => "Hooks in the repositories' settings files hold now; nothing is saved here.",
        SetupSource::None => "Nothing is saved here.",
    };
    let size = view.setup.vm_size.unwrap_or_default();
    html! {
        section.card aria-labelledby="object-title" {
            h2 #object-title { "Scripts of the repositories" }
            p.help { (source) }
            form.stacked method="post" action=(format!("/projects/{id}/setup/object")) {
                (proof_field(visitor))
                label for="vmSize" { "VM size" }
                select #vmSize name="vmSize" {
                    @for one in VmSize::ALL { option value=(one.as_str()) selected[one == size] { (one.as_str()) } }
                }
                @for repo in &view.setup.repositories { (repository(repo)) }
                @if view.legacy_hooks.status == LegacyStatus::Active {
                    label.check {
                        input type="checkbox" name="replace" value="yes";
                        " Saving replaces the active hooks of " (view.legacy_hooks.repositories.join(", "))
                    }
                }
                @if visitor.may(Scope::ProjectWrite) { div.buttons { button.main type="submit" { "Save" } } }
            }
        }
    }
}

fn repository(repo: &RepoSetup) -> Markup {
    let scripts = [
        &repo.scripts.initialize,
        &repo.scripts.update_after_checkout,
        &repo.scripts.startup,
    ];
    let timeouts = repo.timeouts.clone().unwrap_or_default();
    let limits = [timeouts.initialize, timeouts.update_after_checkout, timeouts.startup];
    html! {
        fieldset {
            legend { (repo.repository.to_string()) }
            input type="hidden" name="repository" value=(repo.repository.to_string());
            div.row { label { span { "Branch" } input name="branch" value=(repo.branch.to_string()); } }
            @for (((name, label, when), script), limit) in PHASES.into_iter().zip(scripts).zip(limits) {
                @let text = script.as_ref().map(ToString::to_string).unwrap_or_default();
                div.row {
                    label.wide {
                        span { (label) " " span.dim { "(" (when) ")" } }
                        textarea name=(name) rows=(text.lines().count().clamp(2, 12)) spellcheck="false" { (text) }
                    }
                    label {
                        span { "Time limit, s" }
                        input type="number" name=(format!("{name}Limit")) min="60" max="3600" value=[limit]
                            placeholder=(DEFAULT_SCRIPT_SECONDS);
                    }
                }
            }
        }
    }
}

/// `POST …/setup/object`: the named commands and the hooks around tools stay as they are saved.
pub async fn save_object(Named(id): Named<ProjectId>, Posted { visitor, fields }: Posted) -> Result<Response, Refusal> {
    let path = format!("/projects/{id}/setup");
    let saved: SetupView = visitor.get(&path).await?;
    let mut repositories = Vec::new();
    for (at, name) in fields.all("repository").enumerate() {
        let nth = |field: &str| fields.all(field).nth(at).filter(|text| !text.trim().is_empty());
        let (mut scripts, mut timeouts) = (json!({}), json!({}));
        for (phase, ..) in PHASES {
            scripts[phase] = nth(phase).into();
            if let Some(limit) = nth(&format!("{phase}Limit")) {
                timeouts[phase] = seconds(limit);
            }
        }
        let before = saved.setup.repositories.iter().find(|repo| *repo.repository == *name);
        repositories.push(json!({
            "repository": name,
            "branch": nth("branch").unwrap_or("main").trim(),
            "scripts": scripts,
            "timeouts": timeouts,
            "commands": before.map(|repo| repo.commands.clone()).unwrap_or_default(),
        }));
    }
    let body = json!({ "vmSize": fields.get("vmSize").unwrap_or_default(), "repositories": repositories });
    let confirmed = if fields.has("replace") {
        "?replaceLegacyHooks=true"
    } else {
        ""
    };
    let saved: Result<SetupView, _> = visitor.send(Method::PATCH, &format!("{path}{confirmed}"), &body).await;
    or_say(&visitor, &id, saved).await
}

/// To the page again: it says that it was saved, or what the API refused.
pub async fn or_say<T: Send>(
    visitor: &Visitor,
    id: &ProjectId,
    result: Result<T, Refusal>,
) -> Result<Response, Refusal> {
    match result {
        Ok(_) => Ok(Done::Saved.at(&format!("/projects/{id}/setup"))),
        Err(refusal) => {
            let page = page(visitor, id, &refusal.notice(), Shown::default(), None).await?;
            Ok(refused(page, Some(&refusal)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_form_keep_their_order_and_blank_ones_are_none() {
        let fields = Fields::parse(
            "name=b&command=make&background=no&limit=+90&name=&command=+&background=no&limit=\
             &name=a&command=x%0D%0Ay&background=yes&limit=soon",
        );
        let rows = rows_in(&fields);
        assert_eq!(
            to_json(&rows),
            json!([
                { "name": "b", "command": "make", "timeoutSeconds": 90 },
                { "name": "a", "command": "x\ny", "background": true, "timeoutSeconds": "soon" },
            ])
        );
    }
}
