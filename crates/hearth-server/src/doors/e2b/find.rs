//! What a client of E2B calls a template: a project, by id, name or slug; or a checkpoint, by key or name.

use super::access::Key;
use super::fault::Refusal;
use super::tags;
use crate::http::AppState;
use crate::store::{NamedCheckpoint, ProjectRow};

/// The template that clients take for given.
const BASE: &str = "base";
/// So many names are listed where none fits.
const NAMED: usize = 20;
/// More projects than a tenant has.
const ALL: i64 = 100_000;

/// What a sandbox is made from.
#[derive(Debug, Clone)]
pub enum Template {
    Project(Box<ProjectRow>),
    Checkpoint(Box<ProjectRow>, Box<NamedCheckpoint>),
}

impl Template {
    pub fn project(&self) -> &ProjectRow {
        match self {
            Self::Project(project) | Self::Checkpoint(project, _) => project,
        }
    }
}

/// Small letters, digits and hyphens.
pub fn slug(name: &str) -> String {
    let mut slug = String::new();
    for character in name.to_lowercase().chars() {
        if character.is_alphanumeric() {
            slug.push(character);
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
    }
    slug.trim_end_matches('-').to_owned()
}

/// The projects that a key may use.
pub async fn projects(state: &AppState, key: &Key) -> Result<Vec<ProjectRow>, Refusal> {
    let token = &key.0.0;
    Ok(state
        .store
        .projects(
            &token.tenant,
            token.project_id.as_ref(),
            token.name_prefix.as_deref(),
            None,
            ALL,
        )
        .await?)
}

/// A name without the team before it, and the tag behind it.
pub fn parted(name: &str) -> (&str, Option<&str>) {
    let name = name.trim();
    let name = name.rsplit_once('/').map_or(name, |(_, name)| name);
    match name.split_once(':') {
        Some((name, tag)) => (name, Some(tag)),
        None => (name, None),
    }
}

/// What a text means.
pub async fn template(state: &AppState, key: &Key, text: &str) -> Result<Template, Refusal> {
    let found = named(state, key, text).await?;
    if let Template::Project(project) = &found {
        tags::must_be_newest(state, &project.id, parted(text).1, text).await?;
    }
    Ok(found)
}

/// The project that a text names, whatever its tag.
pub async fn named_project(state: &AppState, key: &Key, text: &str) -> Result<ProjectRow, Refusal> {
    match named(state, key, text).await? {
        Template::Project(project) => Ok(*project),
        Template::Checkpoint(..) => Err(Refusal::wrong(format!("`{text}` is a snapshot, which has no tags"))),
    }
}

async fn named(state: &AppState, key: &Key, text: &str) -> Result<Template, Refusal> {
    let projects = projects(state, key).await?;
    let checkpoints = state.store.checkpoints_in_sight(key.0.sees(None)).await?;
    let (wanted, _) = parted(text);
    let of = |checkpoint: &NamedCheckpoint| {
        let project = projects.iter().find(|project| project.id == checkpoint.project)?;
        Some(Template::Checkpoint(
            Box::new(project.clone()),
            Box::new(checkpoint.clone()),
        ))
    };
    if let Some(found) = checkpoints.iter().find(|checkpoint| checkpoint.key.as_str() == wanted) {
        return of(found).ok_or_else(|| none(text, &projects));
    }
    let rules: [&dyn Fn(&ProjectRow) -> bool; 3] = [
        &|project| project.id.as_str() == wanted,
        &|project| project.name.trim().eq_ignore_ascii_case(wanted),
        &|project| slug(&project.name) == wanted.to_lowercase(),
    ];
    for rule in rules {
        let found: Vec<&ProjectRow> = projects.iter().filter(|project| rule(project)).collect();
        match found.as_slice() {
            [] => {}
            [one] => return Ok(Template::Project(Box::new((*one).clone()))),
            several => {
                let ids: Vec<&str> = several.iter().map(|project| project.id.as_str()).collect();
                let why = format!(
                    "the template `{text}` may be one of several projects: {}; say the id",
                    ids.join(", ")
                );
                return Err(Refusal::wrong(why));
            }
        }
    }
    let named: Vec<&NamedCheckpoint> = checkpoints
        .iter()
        .filter(|checkpoint| checkpoint.name == wanted)
        .collect();
    match named.as_slice() {
        [] => {}
        [one] => return of(one).ok_or_else(|| none(text, &projects)),
        several => {
            let keys: Vec<&str> = several.iter().map(|checkpoint| checkpoint.key.as_str()).collect();
            let why = format!(
                "several snapshots have the name `{text}`: say the id, one of {}",
                keys.join(", ")
            );
            return Err(Refusal::wrong(why));
        }
    }
    match (wanted, projects.as_slice()) {
        (BASE, [only]) => Ok(Template::Project(Box::new(only.clone()))),
        _ => Err(none(text, &projects)),
    }
}

/// 404 that lists what there is.
fn none(text: &str, projects: &[ProjectRow]) -> Refusal {
    let mut names: Vec<String> = projects
        .iter()
        .map(|project| format!("`{}`", slug_or_id(project)))
        .collect();
    names.sort();
    let more = names.len().saturating_sub(NAMED);
    names.truncate(NAMED);
    let what = match (names.is_empty(), more) {
        (true, _) => "this key sees no project; make one with `hearth project create`".to_owned(),
        (false, 0) => format!("templates are Hearth's projects: {}", names.join(", ")),
        (false, more) => format!("templates are Hearth's projects: {} and {more} more", names.join(", ")),
    };
    let base = match parted(text).0 {
        BASE => ". `base` is what a client asks for that names no template: the only project, or the one of this name",
        _ => "",
    };
    Refusal::not_found(format!("template `{text}` was not found; {what}{base}"))
}

/// How a project is best called here.
pub fn slug_or_id(project: &ProjectRow) -> String {
    match slug(&project.name) {
        slug if slug.is_empty() => project.id.to_string(),
        slug => slug,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slug_is_what_people_would_write() {
        for (name, expected) in [("My App", "my-app"), ("  a__b! ", "a-b"), ("x", "x"), ("--", "")] {
            assert_eq!(slug(name), expected, "{name}");
        }
    }

    #[test]
    fn team_and_tag_are_told_apart() {
        for (name, tag) in [
            ("app", None),
            ("team/app", None),
            (" app:v1", Some("v1")),
            ("team/app:a:b", Some("a:b")),
        ] {
            assert_eq!(parted(name), ("app", tag), "{name}");
        }
    }
}
