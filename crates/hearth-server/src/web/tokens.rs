//! Tokens: the list, one that is made (its secret is shown once), one that is revoked.

use axum::http::Method;
use axum::response::Response;
use hearth_api::ids::TokenId;
use hearth_api::page::Items;
use hearth_api::token::{Scope, TokenCreated, TokenItem, TokenRevoked};
use jiff::{SignedDuration, Timestamp};
use maud::{Markup, html};
use serde_json::json;

use super::done::{self, Done};
use super::form::{Fields, Named, Posted};
use super::frame::{Frame, Section, proof_field};
use super::parts;
use super::project::refused;
use super::refusal::Refusal;
use super::visitor::Visitor;

/// `GET /tokens`.
pub async fn list(visitor: Visitor, query: Fields) -> Result<Response, Refusal> {
    page(&visitor, &done::notice(&query), &Fields::default()).await
}

async fn page(visitor: &Visitor, notice: &Markup, given: &Fields) -> Result<Response, Refusal> {
    let all: Items<TokenItem> = visitor.get("/tokens").await?;
    let body = html! {
        div.title { h1 { "Tokens" } }
        (notice)
        table.cards {
            caption.hidden { "Tokens" }
            thead {
                tr {
                    th scope="col" { "Name" } th scope="col" { "Owner" } th scope="col" { "Scopes" } th scope="col" { "Project" }
                    th scope="col" { "Last used" } th scope="col" { "Expires" } th scope="col" { span.hidden { "Actions" } }
                }
            }
            tbody { @for item in &all.items { (row(visitor, item)) } }
        }
        section.card aria-labelledby="new-title" {
            h2 #new-title { "New token" }
            form.stacked method="post" action="/tokens" {
                (proof_field(visitor))
                div.row {
                    label { span { "Name" } input name="name" required maxlength="191" value=(given.get("name").unwrap_or_default()); }
                    label { span { "Owner " span.dim { "(optional)" } } input name="owner" maxlength="191" value=(given.get("owner").unwrap_or_default()); }
                    label { span { "Expires in days " span.dim { "(optional)" } } input type="number" name="days" min="1" max="3650" value=(given.get("days").unwrap_or_default()); }
                }
                fieldset {
                    legend { "What it may do" }
                    @for scope in Scope::ALL {
                        label.check {
                            input type="checkbox" name="scope" value=(scope.as_str()) checked[given.all("scope").any(|one| one == scope.as_str())];
                            " " code { (scope.as_str()) } " " (meaning(scope))
                        }
                    }
                }
                label for="project" { "Only for this project " span.dim { "(optional: its id)" } }
                input #project name="project" value=(given.get("project").unwrap_or_default()) placeholder="prj_…";
                div.buttons { button.main type="submit" { "Make the token" } }
            }
        }
    };
    Ok(Frame::new(visitor, Section::Tokens, "Tokens").show(&body))
}

fn meaning(scope: Scope) -> &'static str {
    match scope {
        Scope::Admin => "everything, tokens included",
        Scope::ProjectRead => "see projects, pools and instances",
        Scope::ProjectWrite => "change projects, variables and pools",
        Scope::Claim => "claim VMs and work in them",
    }
}

fn row(visitor: &Visitor, item: &TokenItem) -> Markup {
    let own = item.id == visitor.caller.0.id;
    html! {
        tr {
            th scope="row" { (item.name) @if own { " " span.dim { "(yours, now)" } } }
            td data-label="Owner" { (item.owner) @if item.tenant != visitor.caller.0.tenant { " " span.dim { "of " (item.tenant) } } }
            td data-label="Scopes" { @for scope in &item.scopes { code { (scope.as_str()) } " " } }
            td data-label="Project" { @match (&item.project_id, &item.name_prefix) { (Some(id), _) => code { (id.as_str()) }, (None, Some(prefix)) => code { (prefix) "*" }, (None, None) => span.dim { "all" } } }
            td data-label="Last used" { (parts::optional_time(item.last_used_at)) }
            td data-label="Expires" { (parts::optional_time(item.expires_at)) }
            td {
                form method="post" action=(format!("/tokens/{}/revoke", item.id)) {
                    (proof_field(visitor))
                    button.quiet type="submit" { "Revoke" span.hidden { " " (item.name) } }
                }
            }
        }
    }
}

/// `POST /tokens`: the one answer that holds a secret, and only this once.
pub async fn create(Posted { visitor, fields }: Posted) -> Result<Response, Refusal> {
    let mut body = json!({
        "name": fields.get("name").unwrap_or_default(),
        "scopes": fields.all("scope").collect::<Vec<_>>(),
    });
    if let Some(owner) = fields.filled("owner") {
        body["owner"] = owner.into();
    }
    if let Some(project) = fields.filled("project") {
        body["projectId"] = project.into();
    }
    if let Some(days) = fields.number("days") {
        let end = days
            .as_i64()
            .and_then(|days| SignedDuration::from_hours(24).checked_mul(i32::try_from(days).ok()?));
        let end = end.and_then(|length| Timestamp::now().checked_add(length).ok());
        body["expiresAt"] = end.map_or(days, |end| end.to_string().into());
    }
    match visitor.send::<TokenCreated>(Method::POST, "/tokens", &body).await {
        Ok(created) => {
            let notice = html! {
                div.notice.good role="status" {
                    p { "Token " strong { (created.item.name) } " made. Copy it now: it is not shown again." }
                    p { code.secret #new-token { (created.token) } " " button.quiet type="button" data-copy="new-token" { "Copy" } }
                }
            };
            page(&visitor, &notice, &Fields::default()).await
        }
        Err(refusal) => {
            let page = page(&visitor, &refusal.notice(), &fields).await?;
            Ok(refused(page, Some(&refusal)))
        }
    }
}

/// `POST /tokens/{token}/revoke`.
pub async fn revoke(Named(id): Named<TokenId>, Posted { visitor, .. }: Posted) -> Result<Response, Refusal> {
    let _: TokenRevoked = visitor.order(Method::DELETE, &format!("/tokens/{id}")).await?;
    Ok(Done::Revoked.at("/tokens"))
}
