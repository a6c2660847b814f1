//! Look-ups for people: what a text means that a person typed, and the list of claims. A token that may only claim finds the
//! projects that it may claim from, and of instances those that it claimed itself.

use axum::Json;
use axum::extract::State;
use futures::StreamExt as _;
use hearth_api::find::{ClaimItem, InstanceFound, ProjectFound};
use hearth_api::ids::ProjectId;
use hearth_api::page::Items;
use hearth_api::token::Scope;
use hearth_api::values::TaskId;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use utoipa::IntoParams;

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use super::extract::Query;
use crate::store::Sight;
use crate::vms::pause::PausedIn;

/// VMs that the host is asked about at a time.
const ASKED_AT_ONCE: usize = 16;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ProjectQuery {
    /// The project's id or name, or the beginning of its id; or a repository's URL, for the projects that have it, however it is written
    /// (`https://`, `ssh://`, `git@host:`, with or without `.git`). Names are compared without regard to blanks around them and to
    /// the case of ASCII letters.
    text: TaskId,
}

#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct InstanceQuery {
    /// The instance's id, its beginning (with or without `wpi_`) or its end (4 characters or more); the task it was claimed
    /// for; or `last`: what this token claimed last.
    text: TaskId,
    /// Only of this project.
    #[param(nullable = false)]
    project_id: Option<ProjectId>,
}

#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct ClaimQuery {
    /// Only of this project.
    #[param(nullable = false)]
    project_id: Option<ProjectId>,
}

impl Caller {
    /// What this token sees of projects and instances; 403 when it may neither read nor claim.
    async fn sight<'a>(&'a self, state: &AppState, project: Option<&'a ProjectId>) -> Result<Sight<'a>, ApiError> {
        if !self.has(Scope::ProjectRead) {
            self.need(Scope::Claim)?;
        }
        if let Some(project) = project {
            self.project_by(state, project, &[Scope::ProjectRead, Scope::Claim])
                .await?;
        }
        Ok(self.sees(project))
    }

    /// The same where it is known that it may, of all projects or one.
    pub fn sees<'a>(&'a self, project: Option<&'a ProjectId>) -> Sight<'a> {
        Sight {
            tenant: &self.0.tenant,
            project: project.or(self.0.project_id.as_ref()),
            claimed_by: (!self.has(Scope::ProjectRead)).then_some(&self.0.id),
            name_prefix: self.0.name_prefix.as_deref(),
        }
    }
}

/// Find a project
///
/// The one of this id, else the one of this name, else those whose ids begin so (at most 10); for a repository's URL all that have it. A
/// token that may only write or claim may ask too.
#[utoipa::path(
    get,
    path = "/find/projects",
    tag = "projects",
    params(ProjectQuery),
    responses((status = 200, body = Items<ProjectFound>, description = "What the text may mean"))
)]
pub async fn find_projects(
    State(state): State<AppState>,
    caller: Caller,
    Query(query): Query<ProjectQuery>,
) -> Result<Json<Items<ProjectFound>>, ApiError> {
    // A token of any scope works on projects.
    let sight = Sight {
        claimed_by: None,
        ..caller.sees(None)
    };
    let items = match repository(&query.text) {
        Some(wanted) => with_repository(&state, &caller, &wanted).await?,
        None => state.store().find_projects(sight, &query.text).await?,
    };
    Ok(Json(Items { items }))
}

/// What names the repository of a URL, however that is written: host and path. `None` for what is no URL.
fn repository(text: &str) -> Option<String> {
    let text = text.trim();
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (scheme, rest.to_owned()),
        None => {
            // As `ssh` writes it: `git@host:path`.
            let (host, path) = text.split_once(':')?;
            let is_host = host.contains('@') && !host.contains(['/', ' ']);
            ("ssh", is_host.then(|| format!("{host}/{path}"))?)
        }
    };
    let (host, path) = rest.split_once('/')?;
    let host = host.rsplit('@').next().unwrap_or(host).to_ascii_lowercase();
    let usual_port = match scheme {
        "https" => ":443",
        "http" => ":80",
        "ssh" => ":22",
        _ => "",
    };
    let host = host.strip_suffix(usual_port).unwrap_or(&host);
    let path = path.trim_matches('/');
    let path = path.strip_suffix(".git").unwrap_or(path);
    Some(format!("{host}/{path}"))
}

/// The projects that have a repository.
async fn with_repository(state: &AppState, caller: &Caller, wanted: &str) -> Result<Vec<ProjectFound>, ApiError> {
    let token = &caller.0;
    let all = state.store().projects(
        &token.tenant,
        token.project_id.as_ref(),
        token.name_prefix.as_deref(),
        None,
        i64::MAX,
    );
    let has = |url: &str| repository(url).is_some_and(|has| has == wanted);
    let found = all.await?.into_iter().map(|project| project.to_view());
    let found = found.filter(|project| project.repos.iter().any(|repo| has(&repo.url)));
    Ok(found
        .map(|project| ProjectFound {
            id: project.id,
            name: project.name,
        })
        .collect())
}

/// Find an instance
///
/// The one of this id, else those claimed for this task, else those whose ids begin or end so (at most 10). What is gone has no
/// status.
#[utoipa::path(
    get,
    path = "/find/instances",
    tag = "claims",
    params(InstanceQuery),
    responses((status = 200, body = Items<InstanceFound>, description = "What the text may mean"), (status = 404, description = "refused"))
)]
pub async fn find_instances(
    State(state): State<AppState>,
    caller: Caller,
    Query(query): Query<InstanceQuery>,
) -> Result<Json<Items<InstanceFound>>, ApiError> {
    let sight = caller.sight(&state, query.project_id.as_ref()).await?;
    let items = state.store().find_instances(sight, &caller.0.id, &query.text).await?;
    Ok(Json(Items { items }))
}

/// List claims
///
/// Those that have not ended, newest first. A token that may only claim sees its own.
#[utoipa::path(
    get,
    path = "/claims",
    tag = "claims",
    params(ClaimQuery),
    responses((status = 200, body = Items<ClaimItem>, description = "The claims"), (status = 404, description = "refused"))
)]
pub async fn list_claims(
    State(state): State<AppState>,
    caller: Caller,
    Query(query): Query<ClaimQuery>,
) -> Result<Json<Items<ClaimItem>>, ApiError> {
    let sight = caller.sight(&state, query.project_id.as_ref()).await?;
    let claims = state.store().claims(sight).await?;
    let now = Timestamp::now();
    let items = futures::stream::iter(claims)
        .map(async |(vm, claim)| {
            // Without its process there is nothing to ask the host about.
            let paused = match claim.vm_ended_at {
                None => state.pause.paused_in(&vm).await,
                Some(_) => None,
            };
            let warning = SignedDuration::from_mins(claim.lease_warning_minutes.into());
            ClaimItem {
                unresponsive: state.probes.unresponsive(&vm),
                lease_ends_soon: claim.expires_at.duration_since(now) < warning,
                paused: paused.is_some(),
                paused_to_disk: paused == Some(PausedIn::Disk),
                paused_because: claim.paused_because.filter(|_| paused.is_some()),
                ..claim
            }
        })
        .buffered(ASKED_AT_ONCE)
        .collect();
    Ok(Json(Items { items: items.await }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_is_the_same_however_its_url_is_written() {
        for url in [
            "https://git.example.org/acme/app",
            "https://git.example.org/acme/app.git",
            "https://user:word@GIT.example.org:443/acme/app/",
            "ssh://git@git.example.org:22/acme/app.git",
            "git@git.example.org:acme/app.git",
            " http://git.example.org/acme/app ",
        ] {
            assert_eq!(repository(url).as_deref(), Some("git.example.org/acme/app"), "{url}");
        }
        assert_eq!(repository("file:///srv/acme/app.git").as_deref(), Some("/srv/acme/app"));
        for other in [
            "https://git.example.org:8443/acme/app",
            "https://git.example.org/acme/App",
        ] {
            assert_ne!(
                repository(other).as_deref(),
                Some("git.example.org/acme/app"),
                "{other}"
            );
        }
        for name in ["web", "acme/app", "prj_1", "a: b", "x:y"] {
            assert_eq!(repository(name), None, "{name}");
        }
    }
}
