//! A project's page: its pool as it is now and why, every instance, and what can be changed.

use axum::http::Method;
use axum::response::Response;
use hearth_api::explain::{Condition, DecisionExplained, InstanceExplained, PoolExplained, RepositoryExplained};
use hearth_api::ids::ProjectId;
use hearth_api::instance::{InstanceItem, InstanceStatus};
use hearth_api::page::Items;
use hearth_api::pool::{ClearReply, Config, PatchPoolReply, PoolView, RetryReply};
use hearth_api::project::ProjectView;
use hearth_api::token::Scope;
use maud::{Markup, html};
use serde_json::json;

use super::done::{self, Done};
use super::form::{Fields, Named, Posted};
use super::frame::{self, Frame, Section, proof_field};
use super::parts::{self, Tone, badge};
use super::project::refused;
use super::refusal::Refusal;
use super::visitor::Visitor;

/// Test boots and failures that the page lists.
const RECORDS: usize = 12;
/// Target size and maximum age of a pool for which none was set.
const DEFAULTS: (i64, i64) = (1, 60);

/// Conditions that are good news when they are true.
const GOOD: [&str; 2] = ["Full", "Fresh"];
/// Those that say that something is under way.
const BUSY: [&str; 2] = ["Building", "Rolling"];

/// The parts of a project's pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tab {
    Pool,
    Setup,
    History,
    Advice,
}

/// What is above all pages of a project.
pub fn head(project: &ProjectView, tab: Option<Tab>) -> Markup {
    let href = format!("/projects/{}", project.id);
    html! {
        p.crumbs { a href="/" { "Projects" } " / " @if tab.is_none() { a href=(href) { (project.name) } } @else { (project.name) } }
        div.title {
            h1 { (project.name) }
            nav.tabs aria-label="Project" {
                a href=(href) aria-current=[(tab == Some(Tab::Pool)).then_some("page")] { "Pool" }
                a href=(format!("{href}/setup")) aria-current=[(tab == Some(Tab::Setup)).then_some("page")] { "Set-up" }
                a href=(format!("{href}/history")) aria-current=[(tab == Some(Tab::History)).then_some("page")] { "History" }
                a href=(format!("{href}/advice")) aria-current=[(tab == Some(Tab::Advice)).then_some("page")] { "Advice" }
                a href=(format!("/claims?project={}", project.id)) { "Claims" }
                a href=(format!("/charts?project={}", project.id)) { "Charts" }
            }
        }
        @if let Some(text) = &project.description { p.dim { (text) } }
    }
}

/// `GET /projects/{project}`.
pub async fn show(Named(id): Named<ProjectId>, visitor: Visitor, query: Fields) -> Result<Response, Refusal> {
    page(&visitor, &id, &done::notice(&query)).await
}

async fn page(visitor: &Visitor, id: &ProjectId, notice: &Markup) -> Result<Response, Refusal> {
    let project: ProjectView = visitor.get(&format!("/projects/{id}/view")).await?;
    let pool: PoolView = visitor.get(&format!("/projects/{id}/warm-pool")).await?;
    let live = pool_part(visitor, id, pool.config.as_ref()).await?;
    let body = html! {
        (head(&project, Some(Tab::Pool)))
        (notice)
        (live)
        div.columns {
            @if visitor.may(Scope::ProjectWrite) { (settings(visitor, &project, pool.config.as_ref())) }
            @if visitor.may(Scope::Claim) { (claim_form(visitor, id)) }
        }
        @if visitor.may(Scope::ProjectWrite) { (dangerous(visitor, &project)) }
    };
    Ok(Frame::new(visitor, Section::Projects, &project.name).show(&body))
}

/// `GET /projects/{project}/pool`: what moves.
pub async fn live(Named(id): Named<ProjectId>, visitor: Visitor) -> Result<Response, Refusal> {
    let pool: PoolView = visitor.get(&format!("/projects/{id}/warm-pool")).await?;
    Ok(frame::part(pool_part(&visitor, &id, pool.config.as_ref()).await?))
}

async fn pool_part(visitor: &Visitor, id: &ProjectId, config: Option<&Config>) -> Result<Markup, Refusal> {
    let explained: PoolExplained = visitor.get(&format!("/projects/{id}/warm-pool/explain")).await?;
    let records: Items<InstanceItem> = visitor
        .get(&format!("/projects/{id}/warm-pool/instances?limit=50"))
        .await?;
    let is_record = |item: &&InstanceItem| item.is_test || item.status == InstanceStatus::Failed;
    let records: Vec<&InstanceItem> = records.items.iter().filter(is_record).take(RECORDS).collect();
    let target = config.filter(|config| config.enabled).map(|_| explained.target);
    let status = &explained.status;
    Ok(html! {
        div #pool hx-get=(format!("/projects/{id}/pool")) hx-trigger="every 2s" hx-swap="outerMorph" {
            p.summary aria-live="polite" { (parts::sentence(&explained.summary)) }
            dl.figures {
                div { dt { "Ready" } dd { (status.ready) @if let Some(target) = target { small { " of " (target) } } } }
                div { dt { "Provisioning" } dd { (status.provisioning) } }
                div { dt { "Failed, 24 h" } dd { (status.failed) } }
                div { dt { "Waiting claims" } dd { (explained.waiting_claims) } }
            }
            (conditions(&explained.conditions))
            section aria-labelledby="instances-title" {
                h2 #instances-title { "Instances" }
                (instances(visitor, id, &explained.instances))
            }
            @if !records.is_empty() {
                section aria-labelledby="boots-title" {
                    h2 #boots-title { "Test boots and failures" }
                    (boots(id, &records))
                }
            }
            (repositories(&explained.repositories))
            (decisions(&explained.decisions))
        }
    })
}

fn conditions(all: &[Condition]) -> Markup {
    let tone = |kind: &str| match kind {
        kind if GOOD.contains(&kind) => Tone::Good,
        kind if BUSY.contains(&kind) => Tone::Busy,
        "Disabled" | "DebugVmKept" => Tone::Off,
        "RecipeFailing" | "BreakerOpen" | "BranchMissing" => Tone::Bad,
        _ => Tone::Warn,
    };
    let (holds, others): (Vec<_>, Vec<_>) = all.iter().partition(|condition| condition.status);
    html! {
        ul.conditions {
            @for condition in holds {
                li {
                    (badge(tone(&condition.kind), &spaced(&condition.kind)))
                    span { (parts::sentence(&condition.message)) " " span.dim { "(" (parts::time(condition.since)) ")" } }
                }
            }
        }
        details #other-conditions {
            summary { "What does not hold (" (others.len()) ")" }
            ul.conditions {
                @for condition in others {
                    li { (badge(Tone::Off, &format!("not {}", spaced(&condition.kind).to_lowercase()))) span { (parts::sentence(&condition.message)) } }
                }
            }
        }
    }
}

/// `RecipeFailing` → `Recipe failing`.
fn spaced(kind: &str) -> String {
    let mut text = String::with_capacity(kind.len() + 2);
    for (at, letter) in kind.char_indices() {
        if at > 0 && letter.is_uppercase() {
            text.push(' ');
            text.extend(letter.to_lowercase());
        } else {
            text.push(letter);
        }
    }
    text
}

fn instances(visitor: &Visitor, project: &ProjectId, all: &[InstanceExplained]) -> Markup {
    html! {
        @if all.is_empty() {
            p.empty { "There is none." }
        } @else {
            table.cards {
                caption.hidden { "Instances of the pool" }
                thead {
                    tr {
                        th scope="col" { "Instance" } th scope="col" { "State" } th.number scope="col" { "Age" }
                        th scope="col" { "Recipe" } th.number scope="col" { "Commits behind" } th.number scope="col" { "Memory" }
                        th scope="col" { span.hidden { "Actions" } }
                    }
                }
                tbody { @for one in all { (instance(visitor, project, one)) } }
            }
        }
    }
}

fn instance(visitor: &Visitor, project: &ProjectId, one: &InstanceExplained) -> Markup {
    let is_boot = one.is_test || matches!(one.status, InstanceStatus::Provisioning | InstanceStatus::Failed);
    let href = if is_boot {
        format!("/projects/{project}/boots/{}", one.id)
    } else {
        format!("/instances/{}", one.id)
    };
    let behind: Option<u64> = one.repos.iter().map(|repo| repo.behind).sum();
    html! {
        tr #(format!("row-{}", one.id)) {
            th scope="row" {
                a href=(href) title=(one.id.as_str()) { code { (parts::short_id(one.id.as_str())) } }
                @if one.is_test { " " span.dim { "test boot" } }
            }
            td data-label="State" {
                (parts::status_of(one.status, one.is_test))
                @if let Some(work) = &one.at_work { div.dim.clip { (work.message) } }
                @if let Some(silent) = &one.unresponsive { div.dim { "Does not answer: " (silent.reason) } }
                @if let Some(until) = one.kept_until { div.dim { "VM kept for debugging, removed " (parts::time(until)) } }
                @if let Some(why) = &one.vm_ended_because { div.dim.clip { (why) } }
            }
            td.number data-label="Age" { (parts::millis(one.age_ms / 1000 * 1000)) }
            td data-label="Recipe" {
                code title=(one.recipe) { (parts::short_hash(&one.recipe)) } " "
                @if one.current { span.dim { "current" } } @else { (badge(Tone::Warn, "older")) }
            }
            td.number data-label="Commits behind" {
                @if one.repos.is_empty() { span.dim { "–" } }
                @else if let Some(behind) = behind { (behind) }
                @else { span.dim title="This host cannot tell." { "?" } }
            }
            td.number data-label="Memory" { (parts::mib(one.memory_mib)) }
            td {
                @if one.status == InstanceStatus::Provisioning && visitor.may(Scope::ProjectWrite) {
                    form method="post" action=(format!("/projects/{project}/boots/{}/cancel", one.id)) {
                        (proof_field(visitor))
                        button.quiet type="submit" { "End boot" span.hidden { " " (one.id.as_str()) } }
                    }
                }
                @if one.status == InstanceStatus::Claimed && visitor.may(Scope::Claim) {
                    form method="post" action=(format!("/instances/{}/release", one.id)) {
                        (proof_field(visitor))
                        button.quiet type="submit" { "Release" span.hidden { " " (one.id.as_str()) } }
                    }
                }
            }
        }
    }
}

fn boots(project: &ProjectId, records: &[&InstanceItem]) -> Markup {
    html! {
        table.cards {
            caption.hidden { "Test boots and failures" }
            thead { tr { th scope="col" { "Boot" } th scope="col" { "Result" } th scope="col" { "Why" } th scope="col" { "Begun" } } }
            tbody {
                @for one in records {
                    tr #(format!("boot-{}", one.id)) {
                        th scope="row" {
                            a href=(format!("/projects/{project}/boots/{}", one.id)) title=(one.id.as_str()) {
                                code { (parts::short_id(one.id.as_str())) }
                            }
                            @if one.is_test { " " span.dim { "test boot" } }
                        }
                        td data-label="Result" {
                            (parts::status_of(one.status, one.is_test))
                        }
                        td data-label="Why" { div.clip { (one.failure_reason.as_deref().unwrap_or("–")) } }
                        td data-label="Begun" { (parts::time(one.created_at)) }
                    }
                }
            }
        }
    }
}

fn repositories(all: &[RepositoryExplained]) -> Markup {
    html! {
        @if !all.is_empty() {
            section aria-labelledby="repositories-title" {
                h2 #repositories-title { "Repositories" }
                table.cards {
                    caption.hidden { "Repositories" }
                    thead { tr { th scope="col" { "Repository" } th scope="col" { "Branch" } th scope="col" { "Commit" } th scope="col" { "Since" } } }
                    tbody {
                        @for repo in all {
                            tr {
                                th scope="row" { (repo.repo_full_name) }
                                td data-label="Branch" { code { (repo.branch) } }
                                td data-label="Commit" {
                                    @match &repo.commit {
                                        Some(commit) => code title=(commit) { (parts::short_hash(commit)) },
                                        None => span.dim { "not seen yet" },
                                    }
                                }
                                td data-label="Since" { (parts::optional_time(repo.since)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn decisions(all: &[DecisionExplained]) -> Markup {
    html! {
        @if !all.is_empty() {
            details #decisions {
                summary { "Latest decisions (" (all.len()) ")" }
                table.cards {
                    caption.hidden { "Latest decisions, newest first" }
                    thead { tr { th scope="col" { "When" } th scope="col" { "What" } th scope="col" { "Why" } th.number scope="col" { "Times" } } }
                    tbody {
                        @for one in all {
                            tr {
                                td data-label="When" { (parts::time(one.at)) }
                                td data-label="What" { (one.action) }
                                td data-label="Why" { (one.reason) }
                                td.number data-label="Times" { (one.count) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn settings(visitor: &Visitor, project: &ProjectView, config: Option<&Config>) -> Markup {
    let href = format!("/projects/{}", project.id);
    let enabled = config.is_some_and(|config| config.enabled);
    let (size, age) = config.map_or(DEFAULTS, |config| (config.target_size, config.max_age_minutes));
    let branch = config.and_then(|config| config.branch.as_deref()).unwrap_or_default();
    html! {
        section.card aria-labelledby="settings-title" {
            h2 #settings-title { "Pool" }
            form.stacked method="post" action=(href) {
                (proof_field(visitor))
                label.check { input type="checkbox" name="enabled" value="yes" checked[enabled]; " Keep VMs ready" }
                div.row {
                    label { span { "Target size" } input type="number" name="targetSize" min="1" max="20" value=(size) required; }
                    label { span { "Maximum age, minutes" } input type="number" name="maxAgeMinutes" min="30" max="180" value=(age) required; }
                }
                label for="branch" { "Branch of every repository " span.dim { "(optional: each its own)" } }
                input #branch name="branch" value=(branch);
                button.main type="submit" { "Save" }
            }
            div.buttons {
                form method="post" action=(format!("{href}/test")) {
                    (proof_field(visitor))
                    button type="submit" { "Test boot" }
                    label.check { input type="checkbox" name="fresh" value="yes"; " run every step" }
                }
                @if config.is_some() {
                    form method="post" action=(format!("{href}/retry")) {
                        (proof_field(visitor))
                        button type="submit" { "Try again" }
                    }
                    form method="post" action=(format!("{href}/clear")) {
                        (proof_field(visitor))
                        button type="submit" { "Clear" }
                        @if enabled { label.check { input type="checkbox" name="replenish" value="yes" checked; " and fill again" } }
                    }
                }
            }
        }
    }
}

fn claim_form(visitor: &Visitor, project: &ProjectId) -> Markup {
    html! {
        section.card aria-labelledby="claim-title" {
            h2 #claim-title { "Claim a VM" }
            form.stacked method="post" action=(format!("/projects/{project}/claim")) {
                (proof_field(visitor))
                label for="task" { "Task " span.dim { "(optional: the same task gets the same VM)" } }
                input #task name="taskId" maxlength="191";
                label for="claim-branch" { "Branch " span.dim { "(optional)" } }
                input #claim-branch name="branch";
                label for="ttl" { "Lease, minutes" }
                input #ttl type="number" name="ttlMinutes" min="1" max="10080" value="720";
                button.main type="submit" { "Claim" }
            }
        }
    }
}

fn dangerous(visitor: &Visitor, project: &ProjectView) -> Markup {
    html! {
        details.danger {
            summary { "Delete the project" }
            form.stacked method="post" action=(format!("/projects/{}/delete", project.id)) {
                (proof_field(visitor))
                p { "Its pool, its variables and its VMs go with it, claimed ones too." }
                label for="delete-name" { "Type " strong { (project.name) } " to delete it" }
                input #delete-name name="name" required autocomplete="off";
                button.bad type="submit" { "Delete" }
            }
        }
    }
}

/// `POST /projects/{project}`: what the pool is to be.
pub async fn change(Named(id): Named<ProjectId>, Posted { visitor, fields }: Posted) -> Result<Response, Refusal> {
    let mut body = json!({ "enabled": fields.has("enabled"), "branch": fields.filled("branch") });
    for name in ["targetSize", "maxAgeMinutes"] {
        if let Some(number) = fields.number(name) {
            body[name] = number;
        }
    }
    let changed = visitor
        .send::<PatchPoolReply>(Method::PATCH, &format!("/projects/{id}/warm-pool"), &body)
        .await;
    or_say(&visitor, &id, changed, Done::Saved).await
}

/// `POST /projects/{project}/retry`.
pub async fn retry(Named(id): Named<ProjectId>, Posted { visitor, .. }: Posted) -> Result<Response, Refusal> {
    let path = format!("/projects/{id}/warm-pool/retry");
    let retried = visitor.order::<RetryReply>(Method::POST, &path).await;
    or_say(&visitor, &id, retried, Done::Retried).await
}

/// `POST /projects/{project}/clear`.
pub async fn clear(Named(id): Named<ProjectId>, Posted { visitor, fields }: Posted) -> Result<Response, Refusal> {
    let path = format!("/projects/{id}/warm-pool/clear");
    let body = json!({ "replenish": fields.has("replenish") });
    let cleared = visitor.send::<ClearReply>(Method::POST, &path, &body).await;
    or_say(&visitor, &id, cleared, Done::Cleared).await
}

/// To the page again: it says what was done, or what the API refused.
pub async fn or_say<T: Send>(
    visitor: &Visitor,
    id: &ProjectId,
    result: Result<T, Refusal>,
    done: Done,
) -> Result<Response, Refusal> {
    match result {
        Ok(_) => Ok(done.at(&format!("/projects/{id}"))),
        Err(refusal) => {
            let page = page(visitor, id, &refusal.notice()).await?;
            Ok(refused(page, Some(&refusal)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_conditions_are_read_as_words() {
        assert_eq!(spaced("RecipeFailing"), "Recipe failing");
        assert_eq!(spaced("Full"), "Full");
    }
}
