//! Branches that a project names and its repositories do not have: said before a boot fails by it, with the command that names
//! another one.

use hearth_api::client::Client;
use hearth_api::find::ProjectFound;
use hearth_api::project::{RepoBranches, RepoView};

use crate::text::clean_line;
use crate::{hint, output};

/// Branches of one repository that are named.
const NAMED: usize = 8;
/// How alike two names are when the one was probably meant, from 0 to 1.
const ALIKE: f64 = 0.6;
/// What stands in a command for a branch that the person has to choose.
const PLACEHOLDER: &str = "BRANCH";
/// The same for an address.
const ADDRESS: &str = "URL";

/// The repositories that answer and do not have the branch that the project's VMs start on. What cannot be asked is not said.
async fn lacking(client: &Client, project: &ProjectFound) -> Vec<RepoBranches> {
    let all = client.list_branches(&project.id).await;
    let all = all.map(|list| list.items).unwrap_or_default();
    all.into_iter().filter(|repo| repo.is_there == Some(false)).collect()
}

/// Warns of branches that are not there.
pub(crate) async fn warn(client: &Client, project: &ProjectFound) {
    let lacking = lacking(client, project).await;
    for repo in &lacking {
        output::note(&format!("warning: {}; a boot of it fails", describe(repo)));
    }
    if let Some(command) = fix(client, project, &lacking).await {
        output::note(&format!("hint: push it, or name another one: {command}"));
    }
}

/// What is wrong with the branches, and the command that changes it; `None` when nothing is known to be wrong.
pub(crate) async fn explain(client: &Client, project: &ProjectFound) -> Option<(Vec<String>, String)> {
    let lacking = lacking(client, project).await;
    let command = fix(client, project, &lacking).await?;
    Some((lacking.iter().map(describe).collect(), command))
}

/// The command that gives a repository that cannot be fetched another address, and what its address is now.
pub(crate) async fn other_address(
    client: &Client,
    project: &ProjectFound,
    repo: Option<&str>,
) -> Option<(Vec<String>, String)> {
    let repos = client.view_project(&project.id).await.ok()?.repos;
    let wrong = repos.iter().find(|other| Some(other.repo_full_name.as_str()) == repo)?;
    let describe = clean_line(&format!(
        "{} is fetched from {}: is that right, and can the host reach it?",
        wrong.repo_full_name, wrong.url
    ));
    let command = set_repos(project.name.as_str(), &repos, |other| match other == wrong {
        true => (other.branch.as_str(), ADDRESS),
        false => (other.branch.as_str(), other.url.as_str()),
    });
    Some((vec![describe], command))
}

/// ``acme/app has no branch `mian`; it has main, topic and 3 more``.
fn describe(repo: &RepoBranches) -> String {
    let all = repo.branches.as_deref().unwrap_or_default();
    let some = by_likeness(all, &repo.branch);
    let named: Vec<&str> = some.iter().take(NAMED).copied().collect();
    let has = match (named.as_slice(), all.len().saturating_sub(NAMED)) {
        ([], _) => "it has none at all".to_owned(),
        (named, 0) => format!("it has {}", named.join(", ")),
        (named, more) => format!("it has {} and {more} more", named.join(", ")),
    };
    clean_line(&format!(
        "{} has no branch `{}`; {has}",
        repo.repo_full_name, repo.branch
    ))
}

/// The branches, those first whose names are most like this one.
fn by_likeness<'a>(all: &'a [String], branch: &str) -> Vec<&'a str> {
    let mut some: Vec<(f64, &str)> = all.iter().map(|name| (likeness(name, branch), name.as_str())).collect();
    some.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    some.into_iter().map(|(_, name)| name).collect()
}

fn likeness(name: &str, branch: &str) -> f64 {
    strsim::normalized_damerau_levenshtein(&name.to_lowercase(), &branch.to_lowercase())
}

/// The branch that was probably meant.
fn meant(repo: &RepoBranches) -> &str {
    let all = repo.branches.as_deref().unwrap_or_default();
    let nearest = by_likeness(all, &repo.branch).first().copied();
    nearest
        .filter(|name| likeness(name, &repo.branch) >= ALIKE)
        .unwrap_or(PLACEHOLDER)
}

/// The command that names other branches: the pool's where the pool has one of its own, else the project's.
async fn fix(client: &Client, project: &ProjectFound, lacking: &[RepoBranches]) -> Option<String> {
    let first = lacking.first()?;
    let pool = client.get_pool(&project.id).await.ok().and_then(|pool| pool.config);
    let name = project.name.as_str();
    if pool.is_some_and(|config| config.branch.as_deref() == Some(first.branch.as_str())) {
        return Some(hint::command(["pool", "set", name, "--branch", meant(first)]));
    }
    // The command replaces all repositories: those that are right are named too.
    let repos = client.view_project(&project.id).await.ok()?.repos;
    Some(set_repos(name, &repos, |repo| {
        let wrong = lacking.iter().find(|other| other.repo_full_name == repo.repo_full_name);
        (wrong.map_or(repo.branch.as_str(), meant), repo.url.as_str())
    }))
}

/// The command that says all repositories anew, with these branches and addresses.
fn set_repos<'a>(
    project: &str,
    repos: &'a [RepoView],
    as_it_is_to_be: impl Fn(&'a RepoView) -> (&'a str, &'a str),
) -> String {
    if repos.iter().any(|repo| !repo.lfs || !repo.submodules) {
        // It could not say that again.
        return hint::command(["project", "edit", project]);
    }
    let mut words = vec!["project".to_owned(), "set".to_owned(), project.to_owned()];
    for repo in repos {
        let (branch, url) = as_it_is_to_be(repo);
        words.extend(["--repo".to_owned(), format!("{}@{branch}={url}", repo.repo_full_name)]);
    }
    hint::command(words.iter().map(String::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branch_that_was_probably_meant_comes_first() {
        let repo = |branch: &str, all: &[&str]| RepoBranches {
            repo_full_name: "acme/app".to_owned(),
            branch: branch.to_owned(),
            is_there: Some(false),
            branches: Some(all.iter().map(|&name| name.to_owned()).collect()),
        };
        let wrong = repo("mian", &["topic", "main"]);
        assert_eq!(describe(&wrong), "acme/app has no branch `mian`; it has main, topic");
        assert_eq!(meant(&wrong), "main");
        assert_eq!(meant(&repo("release", &["topic"])), PLACEHOLDER);
        assert_eq!(
            describe(&repo("x", &[])),
            "acme/app has no branch `x`; it has none at all"
        );
    }
}
