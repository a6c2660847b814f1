//! Which branches a repository has on its own server, and where they are. Nothing is fetched.

use std::path::Path;
use std::time::Duration;

use hearth_core::checkout::Remote;

use super::git::git;
use crate::repos::sources::{Grant, SourceError, Sources};

/// A person waits for the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest look into a mirror.
const LOCAL_PATIENCE: Duration = Duration::from_secs(60);
/// No repository is there whose configuration git would read.
const NOWHERE: &str = "/";

/// A branch of a repository.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    pub branch: String,
    /// Where it is.
    pub commit: String,
}

/// The names of all branches, for a person who names one; the installation's rules hold as for every fetch.
pub async fn remote_branches(sources: &Sources, remote: &Remote) -> Result<Vec<String>, SourceError> {
    let grant = sources.admit(remote)?;
    let heads = heads(sources, &grant, &[], PATIENCE).await?;
    Ok(heads.into_iter().map(|head| head.branch).collect())
}

/// The branches with these full names, or all when none is given, as the repository's server lists them.
pub async fn heads(
    sources: &Sources,
    grant: &Grant,
    names: &[String],
    patience: Duration,
) -> Result<Vec<Head>, SourceError> {
    let command = ["ls-remote", "--heads"];
    let answer = sources
        .git(grant, Path::new(NOWHERE), &command, names, patience)
        .await?;
    Ok(read(&String::from_utf8_lossy(&answer.stdout)))
}

/// Lets a mirror's `HEAD` name the default branch, so that clones of it have `origin/HEAD`, as any clone has. It is asked for once.
pub async fn point_head(
    sources: &Sources,
    grant: &Grant,
    patience: Duration,
    mirror: &Path,
) -> Result<(), SourceError> {
    let known = ["rev-parse", "--quiet", "--verify", "HEAD"];
    if git(mirror, known, LOCAL_PATIENCE).await.is_ok() {
        return Ok(());
    }
    if let Some(branch) = default_branch(sources, grant, patience).await? {
        let name = format!("refs/heads/{branch}");
        git(mirror, ["symbolic-ref", "HEAD", &name], LOCAL_PATIENCE).await?;
    }
    Ok(())
}

/// The branch that the repository's server names as its default. `None`: it names none, as for one without commits.
async fn default_branch(sources: &Sources, grant: &Grant, patience: Duration) -> Result<Option<String>, SourceError> {
    let command = ["ls-remote", "--symref"];
    let answer = sources
        .git(grant, Path::new(NOWHERE), &command, &["HEAD".to_owned()], patience)
        .await?;
    Ok(read_default(&String::from_utf8_lossy(&answer.stdout)))
}

/// A line of `ref: refs/heads/<branch><tab>HEAD`.
fn read_default(answer: &str) -> Option<String> {
    let mut lines = answer.lines().filter_map(|line| line.strip_suffix("\tHEAD"));
    lines
        .find_map(|line| line.strip_prefix("ref: refs/heads/"))
        .map(str::to_owned)
}

/// Lines of `<commit><tab>refs/heads/<branch>`.
fn read(answer: &str) -> Vec<Head> {
    let heads = answer.lines().filter_map(|line| {
        let (commit, name) = line.split_once('\t')?;
        let branch = name.strip_prefix("refs/heads/")?;
        let is_name = commit.len() >= 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_name.then(|| Head {
            branch: branch.to_owned(),
            commit: commit.to_owned(),
        })
    });
    heads.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_branch_is_what_head_points_at() {
        let answer = "ref: refs/heads/a/b\tHEAD\n8c5f0a1e6f4b7d2c9e3a5b8d1f6c4e2a7b9d0c3e\tHEAD\n";
        assert_eq!(read_default(answer).as_deref(), Some("a/b"));
        for other in ["", "8c5f0a1e\tHEAD\n", "ref: refs/heads/x\trefs/remotes/origin/HEAD\n"] {
            assert_eq!(read_default(other), None, "{other}");
        }
    }

    #[test]
    fn only_whole_lines_of_branches_are_read() {
        let commit = "8c5f0a1e6f4b7d2c9e3a5b8d1f6c4e2a7b9d0c3e";
        let answer = format!(
            "{commit}\trefs/heads/main\n{commit}\trefs/heads/a/refs/heads/b\nabc\trefs/heads/x\n\
             {commit}\trefs/tags/v1\n{commit} refs/heads/y\n{commit}\trefs/heads/ä"
        );
        let heads = read(&answer);
        let names: Vec<_> = heads.iter().map(|head| head.branch.as_str()).collect();
        assert_eq!(names, ["main", "a/refs/heads/b", "ä"]);
        assert_eq!(heads[0].commit, commit);
    }
}
