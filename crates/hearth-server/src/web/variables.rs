//! Variables of a project: their names are shown, their values only go in.

use axum::http::Method;
use axum::response::Response;
use hearth_api::ids::ProjectId;
use hearth_api::page::Items;
use hearth_api::token::Scope;
use hearth_api::variables::{VariableDeleted, VariableItem};
use maud::{Markup, html};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;

use super::form::{Named, Posted};
use super::frame::proof_field;
use super::parts;
use super::refusal::Refusal;
use super::setup::or_say;
use super::visitor::Visitor;

/// Both kinds: as the API names them, and for people.
const KINDS: [(&str, &str); 2] = [
    ("shared", "shared: in every VM"),
    ("personal", "yours: in the VMs that you claim"),
];

/// The part of the set-up page.
pub async fn section(visitor: &Visitor, id: &ProjectId) -> Result<Markup, Refusal> {
    let mut rows = Vec::new();
    for (kind, label) in KINDS {
        let path = format!("/projects/{id}/environment-variables/{kind}");
        let items: Items<VariableItem> = visitor.get(&path).await?;
        rows.extend(items.items.into_iter().map(|item| (kind, label, item)));
    }
    Ok(html! {
        section.card aria-labelledby="variables-title" {
            h2 #variables-title { "Variables" }
            p.help { "Commands see them, and " code { "/home/.env" } " holds them. A value that was saved is never shown again." }
            @if !rows.is_empty() {
                table.cards {
                    caption.hidden { "Variables" }
                    thead { tr { th scope="col" { "Name" } th scope="col" { "Kind" } th scope="col" { "Set" } th scope="col" { span.hidden { "Actions" } } } }
                    tbody {
                        @for (kind, label, item) in &rows {
                            tr {
                                th scope="row" { code { (item.name) } }
                                td data-label="Kind" { (label) }
                                td data-label="Set" {
                                    (parts::time(item.updated_at))
                                    @if let Some(by) = &item.last_updated_by_user_id { " by " (by) }
                                }
                                td {
                                    @if visitor.may(Scope::ProjectWrite) {
                                        form method="post" action=(format!("/projects/{id}/setup/variables/delete")) {
                                            (proof_field(visitor))
                                            input type="hidden" name="kind" value=(kind);
                                            input type="hidden" name="name" value=(item.name);
                                            button.quiet type="submit" { "Delete" span.hidden { " " (item.name) } }
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
            }
            @if visitor.may(Scope::ProjectWrite) {
                form.stacked method="post" action=(format!("/projects/{id}/setup/variables")) {
                    (proof_field(visitor))
                    div.row {
                        label { span { "Name" } input name="name" required spellcheck="false" autocomplete="off"; }
                        label { span { "Kind" } select name="kind" { @for (kind, label) in KINDS { option value=(kind) { (label) } } } }
                    }
                    label for="value" { "Value" }
                    textarea #value name="value" rows="2" spellcheck="false" autocomplete="off" {}
                    div.buttons { button.main type="submit" { "Save the variable" } }
                }
            }
        }
    })
}

/// Which kind a form names; anything else is the shared ones.
fn kind(named: Option<&str>) -> &'static str {
    let found = KINDS.into_iter().find(|(kind, _)| Some(*kind) == named);
    found.map_or(KINDS[0].0, |(kind, _)| kind)
}

/// `POST …/setup/variables`.
pub async fn save(Named(id): Named<ProjectId>, Posted { visitor, fields }: Posted) -> Result<Response, Refusal> {
    let path = format!("/projects/{id}/environment-variables/{}", kind(fields.get("kind")));
    let body = json!({ "variables": [{
        "name": fields.filled("name").unwrap_or_default(),
        "value": fields.get("value").unwrap_or_default(),
    }] });
    let saved: Result<Items<VariableItem>, _> = visitor.send(Method::PUT, &path, &body).await;
    or_say(&visitor, &id, saved).await
}

/// `POST …/setup/variables/delete`.
pub async fn delete(Named(id): Named<ProjectId>, Posted { visitor, fields }: Posted) -> Result<Response, Refusal> {
    let name = utf8_percent_encode(fields.get("name").unwrap_or_default(), NON_ALPHANUMERIC);
    let kind = kind(fields.get("kind"));
    let path = format!("/projects/{id}/environment-variables/{kind}/{name}");
    let deleted: Result<VariableDeleted, _> = visitor.order(Method::DELETE, &path).await;
    or_say(&visitor, &id, deleted).await
}
