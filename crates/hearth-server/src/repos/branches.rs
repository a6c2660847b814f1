//! The branch that a claim asks for: which of the project's repositories have it. Looked up before anything is taken.

use std::time::Duration;

use futures::future::join_all;
use hearth_core::checkout::{Checkout, Remote};

use super::git::{GitError, git};
use super::mirrors::{Freshness, MirrorError, Mirrors};

/// a branch head of the branch that was fetched so long ago is new enough for a claim.
const FRESH: Duration = Duration::from_secs(15);
/// Time limit of a git command on the host's own copy.
const LOCAL_PATIENCE: Duration = Duration::from_secs(30);
/// Branches of one repository that a refusal names.
const NAMED: usize = 5;
/// How alike two names are that one was perhaps meant by, from 0 to 1.
const ALIKE: f64 = 0.6;

/// Where the branch is that a claim asks for.
#[derive(Debug, Clone)]
pub struct Asked {
    pub branch: String,
    /// By repository's URL: the branch's commit there.
    found: Vec<(String, String)>,
}

/// Why a claim cannot have its branch.
#[derive(Debug, thiserror::Error)]
pub enum BranchError {
    /// No repository has it.
    #[error("no repository has a branch `{branch}`{}; push it, or claim another branch", others.concat())]
    Nowhere {
        branch: String,
        /// Of each repository: which branches it has.
        others: Vec<String>,
    },
    /// A repository cannot be asked: that is not the same as having no such branch.
    #[error("it is not known whether {repo} has a branch `{branch}`: {source}")]
    Unknown {
        /// `org/name`
        repo: String,
        branch: String,
        /// What went wrong.
        source: MirrorError,
    },
}

impl Asked {
    /// The branch's commit in this repository; `None` when that has no such branch.
    #[must_use]
    pub fn commit(&self, checkout: &Checkout) -> Option<&str> {
        let found = self.found.iter().find(|(url, _)| *url == checkout.url);
        found.map(|(_, commit)| commit.as_str())
    }

    /// Looks into all repositories. `patience`: for each fetch.
    pub async fn find(
        mirrors: &Mirrors,
        checkouts: &[Checkout],
        branch: &str,
        patience: Duration,
    ) -> Result<Self, BranchError> {
        let freshness = Freshness::Fetched(FRESH);
        let heads = checkouts.iter().map(async |checkout| {
            let (name, remote) = (&checkout.repo_full_name, checkout.remote());
            mirrors.fetch(name, &remote, branch, patience, freshness).await
        });
        let mut found = Vec::new();
        for (checkout, head) in checkouts.iter().zip(join_all(heads).await) {
            match head {
                Ok(head) => found.push((checkout.url.clone(), head.commit)),
                Err(MirrorError::NoBranch { .. }) => {}
                Err(source) => {
                    return Err(BranchError::Unknown {
                        repo: checkout.repo_full_name.clone(),
                        branch: branch.to_owned(),
                        source,
                    });
                }
            }
        }
        let branch = branch.to_owned();
        if found.is_empty() {
            let others = join_all(checkouts.iter().map(|checkout| others(mirrors, checkout, &branch))).await;
            return Err(BranchError::Nowhere { branch, others });
        }
        Ok(Self { branch, found })
    }
}

/// Which branches a repository has, for a person who asked for one that it has not.
async fn others(mirrors: &Mirrors, checkout: &Checkout, branch: &str) -> String {
    let repo = &checkout.repo_full_name;
    match mirrors.branches(&checkout.remote()).await {
        Ok(all) => tell(repo, &all, branch),
        Err(error) => {
            tracing::warn!(%error, repo, "the branches of a repository cannot be listed");
            String::new()
        }
    }
}

fn tell(repo: &str, all: &[String], branch: &str) -> String {
    let names = |some: &[&String]| {
        let quoted: Vec<_> = some.iter().map(|name| format!("`{name}`")).collect();
        quoted.join(", ")
    };
    let alike = alike(all, branch);
    if !alike.is_empty() {
        return format!("; similar ones in {repo}: {}", names(&alike));
    }
    let some: Vec<_> = all.iter().take(NAMED).collect();
    match all.len().saturating_sub(NAMED) {
        0 if some.is_empty() => format!("; {repo} has no branches at all"),
        0 => format!("; {repo} has {}", names(&some)),
        more => format!("; {repo} has {} and {more} more", names(&some)),
    }
}

/// The branches whose names are most like this one.
fn alike<'a>(all: &'a [String], branch: &str) -> Vec<&'a String> {
    let freshness = plain(branch);
    let likeness = |name: &String| {
        let name = plain(name);
        let last = |name: &str| name.rsplit('/').next().unwrap_or_default().to_owned();
        match () {
            () if name == freshness => 1.0,
            // `login` for `feature/login`.
            () if last(&name) == last(&freshness) => 0.9,
            () => strsim::normalized_damerau_levenshtein(&name, &freshness),
        }
    };
    let mut scored: Vec<_> = all.iter().map(|name| (likeness(name), name)).collect();
    scored.retain(|(likeness, _)| *likeness >= ALIKE);
    scored.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    scored.into_iter().take(NAMED).map(|(_, name)| name).collect()
}

/// What people put before a branch's name, and how they write it, makes no difference.
fn plain(name: &str) -> String {
    let name = name.to_lowercase();
    let before = ["refs/heads/", "refs/remotes/", "origin/"];
    let name = before
        .iter()
        .fold(name.as_str(), |name, before| name.strip_prefix(before).unwrap_or(name));
    name.replace(['_', '.'], "-")
}

impl Mirrors {
    /// The branches of a repository, as it was last fetched.
    async fn branches(&self, remote: &Remote) -> Result<Vec<String>, GitError> {
        let Ok(grant) = self.sources().admit(remote) else {
            return Ok(Vec::new());
        };
        let (_, mirror) = self.folder_of(&grant);
        let words = ["for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads/"];
        let said = git(&mirror, words, LOCAL_PATIENCE).await?.stdout;
        Ok(String::from_utf8_lossy(&said).lines().map(str::to_owned).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_that_look_alike_are_named_first_and_else_some() {
        let all = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let cases = [
            (
                all(&["main", "topic", "other"]),
                "topci",
                "; similar ones in a/b: `topic`",
            ),
            (
                all(&["main", "topic"]),
                "origin/topic",
                "; similar ones in a/b: `topic`",
            ),
            (
                all(&["main", "feature/login"]),
                "login",
                "; similar ones in a/b: `feature/login`",
            ),
            (all(&["main", "Fix_It"]), "fix-it", "; similar ones in a/b: `Fix_It`"),
            (all(&["main", "dev"]), "nosuchbranch", "; a/b has `main`, `dev`"),
            (
                all(&["1", "2", "3", "4", "5", "6", "7"]),
                "x",
                "; a/b has `1`, `2`, `3`, `4`, `5` and 2 more",
            ),
            (all(&[]), "x", "; a/b has no branches at all"),
        ];
        for (all, branch, told) in cases {
            assert_eq!(tell("a/b", &all, branch), told);
        }
    }
}
