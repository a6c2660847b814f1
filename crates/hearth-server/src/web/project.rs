//! Making a project and deleting one.

use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use hearth_api::error::ErrorCode;
use hearth_api::ids::ProjectId;
use hearth_api::project::{Project, ProjectDeleted, ProjectView, VmSize};
use hearth_api::token::Scope;
use maud::{Markup, html};
use serde_json::{Value, json};

use super::done::Done;
use super::form::{Fields, Named, Posted};
use super::frame::{Frame, Section, proof_field};
use super::refusal::Refusal;
use super::visitor::Visitor;

/// Repositories that the empty form has room for; what a script adds comes on top.
const REPOSITORIES: usize = 2;

/// `GET /projects/new`.
pub async fn new(visitor: Visitor) -> Result<Response, Refusal> {
    visitor.caller.need(Scope::ProjectWrite)?;
    Ok(form(&visitor, &Fields::default(), None))
}

fn form(visitor: &Visitor, fields: &Fields, refusal: Option<&Refusal>) -> Response {
    let value = |name| fields.get(name).unwrap_or_default();
    let given: Vec<(&str, &str, &str)> = repositories(fields).collect();
    let blanks = REPOSITORIES.saturating_sub(given.len()).max(1);
    let size = fields.get("vmSize").unwrap_or(VmSize::default().as_str());
    let body = html! {
        h1 { "New project" }
        @if let Some(refusal) = refusal { (refusal.notice()) }
        form.stacked method="post" action="/projects" {
            (proof_field(visitor))
            label for="name" { "Name" }
            input #name name="name" required maxlength="191" value=(value("name")) autofocus;
            label for="description" { "Description " span.dim { "(optional)" } }
            input #description name="description" value=(value("description"));
            fieldset {
                legend { "Repositories" }
                p.help {
                    "Name as " code { "org/name" } ", branch, and where it is fetched from; without an address the server's own git host is asked."
                }
                div data-rows="" {
                    @for (name, branch, url) in given.into_iter().chain(std::iter::repeat_n(("", "main", ""), blanks)) {
                        (repository(name, branch, url))
                    }
                }
                button.quiet type="button" data-add="" { "Add a repository" }
            }
            label for="vmSize" { "VM size" }
            select #vmSize name="vmSize" {
                @for one in VmSize::ALL { option value=(one.as_str()) selected[one.as_str() == size] { (one.as_str()) } }
            }
            label for="image" { "Image " span.dim { "(optional: the newest one)" } }
            input #image name="image" value=(value("image"));
            button.main type="submit" { "Make the project" }
        }
    };
    let page = Frame::new(visitor, Section::Projects, "New project").show(&body);
    match refusal {
        Some(refusal) => (refusal.status(), page).into_response(),
        None => page,
    }
}

fn repository(name: &str, branch: &str, url: &str) -> Markup {
    html! {
        div.row data-row="" {
            label { span { "Repository" } input name="repo" value=(name) placeholder="org/name"; }
            label { span { "Branch" } input name="branch" value=(branch) placeholder="main"; }
            label.wide { span { "Fetched from" } input name="url" value=(url) placeholder="https://…"; }
            button.quiet type="button" data-remove="" { "Remove" }
        }
    }
}

/// The repositories that are named in the form: name, branch, address.
fn repositories(fields: &Fields) -> impl Iterator<Item = (&str, &str, &str)> {
    let rows = fields.all("repo").zip(fields.all("branch")).zip(fields.all("url"));
    rows.map(|((name, branch), url)| (name.trim(), branch.trim(), url.trim()))
        .filter(|(name, _, url)| !name.is_empty() || !url.is_empty())
}

/// `POST /projects`.
pub async fn create(Posted { visitor, fields }: Posted) -> Response {
    let mut body = json!({
        "name": fields.get("name").unwrap_or_default(),
        "vmSize": fields.get("vmSize").unwrap_or(VmSize::default().as_str()),
    });
    for name in ["description", "image"] {
        if let Some(text) = fields.filled(name) {
            body[name] = text.into();
        }
    }
    let repos = repositories(&fields).map(|(name, branch, url)| {
        let mut repo = json!({ "repoFullName": name, "branch": if branch.is_empty() { "main" } else { branch } });
        if !url.is_empty() {
            repo["url"] = url.into();
        }
        repo
    });
    body["repos"] = repos.collect::<Vec<Value>>().into();
    match visitor.send::<Project>(Method::POST, "/projects", &body).await {
        Ok(project) => Done::Created.at(&format!("/projects/{}/setup", project.id)),
        Err(refusal) => form(&visitor, &fields, Some(&refusal)),
    }
}

/// `POST /projects/{project}/delete`: the name is typed, so that it is no slip.
pub async fn delete(Named(id): Named<ProjectId>, Posted { visitor, fields }: Posted) -> Result<Response, Refusal> {
    let project: ProjectView = visitor.get(&format!("/projects/{id}/view")).await?;
    if fields.filled("name") != Some(project.name.trim()) {
        let why = "type the project's name to delete it; nothing was deleted";
        return Err(Refusal::new(ErrorCode::ValidationError, why));
    }
    let _: ProjectDeleted = visitor.order(Method::DELETE, &format!("/projects/{id}")).await?;
    Ok(Done::Deleted.at("/"))
}

/// Whether a status is one of a page that shows a refusal.
#[must_use]
pub fn refused(page: Response, refusal: Option<&Refusal>) -> Response {
    let status = refusal.map_or(StatusCode::OK, Refusal::status);
    (status, page).into_response()
}
