//! The list of projects: whose pools are full, and whose need somebody.

use axum::extract::{FromRequestParts as _, Request, State};
use axum::http::header;
use axum::response::{IntoResponse as _, Redirect, Response};
use hearth_api::token::Scope;
use jiff::Timestamp;
use maud::{Markup, html};

use super::Pages;
use super::done;
use super::form::Fields;
use super::frame::{self, Frame, Section};
use super::parts::{self, Tone, badge};
use super::refusal::Refusal;
use super::visitor::Visitor;
use crate::http::{places, wants_page};
use crate::store::{FailureSeen, ProjectOverview, Sight, Store};

/// Projects of one page.
const PER_PAGE: usize = 50;
/// What htmx says when it wants the list alone.
const HTMX: &str = "hx-request";

/// How a pool is, as far as its counts say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PoolState {
    Full,
    Filling,
    Failing,
    Waiting,
    Disabled,
    Unconfigured,
}

impl PoolState {
    fn of(project: &ProjectOverview) -> Self {
        match project.pool {
            None => Self::Unconfigured,
            Some((false, _)) => Self::Disabled,
            Some((true, target)) if project.ready >= target => Self::Full,
            Some(_) if project.provisioning > 0 => Self::Filling,
            Some(_) if project.failed > 0 => Self::Failing,
            Some(_) => Self::Waiting,
        }
    }

    fn badge(self) -> Markup {
        match self {
            Self::Full => badge(Tone::Good, "Full"),
            Self::Filling => badge(Tone::Busy, "Filling"),
            Self::Failing => badge(Tone::Bad, "Failing"),
            Self::Waiting => badge(Tone::Warn, "Waiting"),
            Self::Disabled => badge(Tone::Off, "Disabled"),
            Self::Unconfigured => badge(Tone::Off, "No pool"),
        }
    }

    fn needs_somebody(self) -> bool {
        matches!(self, Self::Failing | Self::Waiting)
    }
}

/// Which projects are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filter {
    All,
    Attention,
    Enabled,
    Disabled,
}

impl Filter {
    const ALL: [(Self, &'static str, &'static str); 4] = [
        (Self::All, "all", "All"),
        (Self::Attention, "attention", "Need attention"),
        (Self::Enabled, "enabled", "Enabled"),
        (Self::Disabled, "disabled", "Disabled"),
    ];

    fn of(query: &Fields) -> Self {
        let named = query.get("show");
        let found = Self::ALL.into_iter().find(|(_, name, _)| Some(*name) == named);
        found.map_or(Self::All, |(filter, ..)| filter)
    }

    fn takes(self, project: &ProjectOverview) -> bool {
        let state = PoolState::of(project);
        match self {
            Self::All => true,
            Self::Attention => state.needs_somebody() || project.failed > 0,
            Self::Enabled => project.pool.is_some_and(|(enabled, _)| enabled),
            Self::Disabled => !project.pool.is_some_and(|(enabled, _)| enabled),
        }
    }
}

/// `GET /`: the list for people, the API's places for programs.
pub async fn list(State(pages): State<Pages>, request: Request) -> Response {
    let is_part = request.headers().contains_key(HTMX);
    if !is_part && !wants_page(request.headers()) {
        return with_vary(places());
    }
    let (mut parts, _) = request.into_parts();
    let answer = match Visitor::from_request_parts(&mut parts, &pages).await {
        Ok(visitor) => {
            let query = Fields::parse(parts.uri.query().unwrap_or_default());
            shown(&visitor, &query, is_part)
                .await
                .unwrap_or_else(Refusal::into_response)
        }
        Err(answer) => answer,
    };
    with_vary(answer)
}

fn with_vary(mut response: Response) -> Response {
    response
        .headers_mut()
        .insert(header::VARY, header::HeaderValue::from_static("accept"));
    response
}

async fn shown(visitor: &Visitor, query: &Fields, is_part: bool) -> Result<Response, Refusal> {
    let caller = &visitor.caller;
    if !caller.has(Scope::ProjectRead) && caller.has(Scope::Claim) {
        return Ok(Redirect::to("/claims").into_response());
    }
    caller.need(Scope::ProjectRead)?;
    let since = Store::failed_window(Timestamp::now());
    let sight = Sight {
        tenant: &caller.0.tenant,
        project: caller.0.project_id.as_ref(),
        claimed_by: None,
        name_prefix: caller.0.name_prefix.as_deref(),
    };
    let all = visitor.state.pools.overview(sight, since).await?;
    let list = part(visitor, &all, query, since).await?;
    if is_part {
        return Ok(frame::part(list));
    }
    let (text, filter) = (query.get("q").unwrap_or_default(), Filter::of(query));
    let body = html! {
        div.title {
            h1 { "Projects" }
            @if visitor.may(Scope::ProjectWrite) && caller.0.project_id.is_none() {
                a.button.main href="/projects/new" { "New project" }
            }
        }
        (done::notice(query))
        @if all.is_empty() {
            div.empty {
                p { strong { "There is no project yet." } }
                p { "A project says which repositories its VMs hold and how they are set up. Make one, test its set-up, enable its pool." }
            }
        } @else {
            form.filter method="get" action="/" role="search" {
                label.hidden for="q" { "Search by name" }
                input #q type="search" name="q" value=(text) placeholder="Search by name";
                label.hidden for="show" { "Which projects" }
                select #show name="show" {
                    @for (one, name, label) in Filter::ALL {
                        option value=(name) selected[one == filter] { (label) }
                    }
                }
                button type="submit" { "Search" }
            }
            (list)
        }
    };
    Ok(Frame::new(visitor, Section::Projects, "Projects").show(&body))
}

/// The summary and the list: what is loaded again.
async fn part(visitor: &Visitor, all: &[ProjectOverview], query: &Fields, since: Timestamp) -> Result<Markup, Refusal> {
    let filter = Filter::of(query);
    let text = query.get("q").unwrap_or_default().trim().to_lowercase();
    let found: Vec<&ProjectOverview> = all
        .iter()
        .filter(|project| filter.takes(project))
        .filter(|project| text.is_empty() || project.name.to_lowercase().contains(&text))
        .collect();
    let (page, pages) = query.page(found.len(), PER_PAGE);
    let mut rows = Vec::new();
    for project in found.iter().skip((page - 1) * PER_PAGE).take(PER_PAGE) {
        let failure = match project.failed {
            0 => None,
            _ => visitor.state.store.newest_failure(&project.id, since).await?,
        };
        rows.push((*project, failure));
    }
    let at = |page: usize| {
        let mut address = form_urlencoded::Serializer::new(String::new());
        for name in ["q", "show"] {
            if let Some(value) = query.filled(name) {
                address.append_pair(name, value);
            }
        }
        format!("/?{}", address.append_pair("p", &page.to_string()).finish())
    };
    Ok(html! {
        div #list hx-get=(at(page)) hx-trigger="every 3s" hx-swap="outerMorph" {
            (summary(all))
            @if rows.is_empty() {
                p.empty { "No project is like that." }
            } @else {
                table.cards {
                    caption.hidden { "Projects" }
                    thead {
                        tr {
                            th scope="col" { "Project" } th scope="col" { "Pool" } th scope="col" { "Ready" }
                            th.number scope="col" { "Provisioning" } th.number scope="col" { "Claimed" }
                            th scope="col" { "Last failure (24 h)" }
                        }
                    }
                    tbody {
                        @for (project, failure) in &rows { (row(project, failure.as_ref())) }
                    }
                }
            }
            @if pages > 1 {
                nav.pages aria-label="Pages of the list" {
                    @if page > 1 { a href=(at(page - 1)) rel="prev" { "Previous" } }
                    span { "Page " (page) " of " (pages) " · " (found.len()) " projects" }
                    @if page < pages { a href=(at(page + 1)) rel="next" { "Next" } }
                }
            }
        }
    })
}

fn summary(all: &[ProjectOverview]) -> Markup {
    let enabled = || {
        all.iter()
            .filter(|project| project.pool.is_some_and(|(enabled, _)| enabled))
    };
    let target: u64 = enabled()
        .filter_map(|project| project.pool)
        .map(|(_, target)| target)
        .sum();
    let ready: u64 = enabled().map(|project| project.ready).sum();
    let sum = |count: fn(&ProjectOverview) -> u64| all.iter().map(count).sum::<u64>();
    let attention = all.iter().filter(|project| Filter::Attention.takes(project)).count();
    html! {
        dl.figures {
            div { dt { "Ready" } dd { (ready) small { " of " (target) } } }
            div { dt { "Provisioning" } dd { (sum(|project| project.provisioning)) } }
            div { dt { "Claimed" } dd { (sum(|project| project.claimed)) } }
            div { dt { "Failed, 24 h" } dd { (sum(|project| project.failed)) } }
            div { dt { a href="/?show=attention" { "Need attention" } } dd { (attention) small { " of " (all.len()) } } }
        }
    }
}

fn row(project: &ProjectOverview, failure: Option<&FailureSeen>) -> Markup {
    let href = format!("/projects/{}", project.id);
    let state = PoolState::of(project);
    html! {
        tr #(format!("row-{}", project.id)) {
            th scope="row" {
                a href=(href) { (project.name) }
                @if let Some(text) = &project.description { div.dim.clip { (text) } }
            }
            td data-label="Pool" { (state.badge()) }
            td data-label="Ready" {
                @match project.pool {
                    Some((true, target)) => (parts::meter(project.ready, target, &format!("{} of {target}", project.ready))),
                    _ => span.dim { "–" },
                }
            }
            td.number data-label="Provisioning" { (project.provisioning) }
            td.number data-label="Claimed" { (project.claimed) }
            td data-label="Last failure" {
                @if let Some(failure) = failure {
                    a.clip href=(format!("{href}/boots/{}", failure.instance)) { (failure.reason.to_string()) }
                    div.dim { (parts::time(failure.at)) @if failure.is_test { ", test boot" } }
                } @else { span.dim { "–" } }
            }
        }
    }
}
