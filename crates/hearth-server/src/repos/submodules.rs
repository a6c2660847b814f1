//! The submodules that a commit names: where each is, where it comes from, and at which commit.

use std::collections::BTreeMap;

use super::git::{GitError, git};
use super::mirrors::{LOCAL_PATIENCE, MirrorCommit, MirrorError};

/// The file that names them.
const FILE: &str = ".gitmodules";
/// How `git ls-tree` shows a commit in a tree.
const COMMIT_ENTRY: &str = "160000 commit ";

/// One of them, as its parent says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is called.
    pub name: String,
    /// Its place below its parent.
    pub path: String,
    /// As the file says it, perhaps relative.
    pub url: String,
    /// Its commit.
    pub commit: String,
}

/// The submodules of a commit, and what a person should know of others that are left empty as git would leave them.
pub async fn list(head: &MirrorCommit, label: &str) -> Result<(Vec<Entry>, Vec<String>), MirrorError> {
    let local = |source| MirrorError::Local {
        repo: label.to_owned(),
        source,
    };
    let blob = format!("{}:{FILE}", head.commit);
    let asks = ["config", "--blob", &blob, "--null", "--list"];
    let mut named: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    match head.file(FILE).await? {
        None => return Ok((Vec::new(), Vec::new())),
        Some(_) => {
            let said = git(head.mirror(), asks, LOCAL_PATIENCE)
                .await
                .map_err(|error| match error {
                    GitError::Failed { stderr, .. } => MirrorError::Submodule {
                        repo: label.to_owned(),
                        url: FILE.to_owned(),
                        why: stderr,
                    },
                    error => local(error),
                })?;
            let said = said.stdout;
            for (key, value) in pairs(&String::from_utf8_lossy(&said)) {
                let Some((name, key)) = key.strip_prefix("submodule.").and_then(|rest| rest.rsplit_once('.')) else {
                    continue;
                };
                named.entry(name.to_owned()).or_default().insert(key.to_owned(), value);
            }
        }
    }
    let commits = commits(head).await.map_err(local)?;
    let (mut entries, mut notes) = (Vec::new(), Vec::new());
    for (path, commit) in commits {
        let of_path = named
            .iter()
            .find(|(_, says)| says.get("path").map(|it| it.trim_end_matches('/')) == Some(&path));
        let Some((name, says)) = of_path else {
            notes.push(format!(
                "{path} of {label} stays empty: {FILE} does not say where it comes from"
            ));
            continue;
        };
        if says.get("update").is_some_and(|update| update == "none") {
            notes.push(format!("{path} of {label} stays empty: {FILE} says so (update = none)"));
            continue;
        }
        let fault = |url: &str, why: &str| MirrorError::Submodule {
            repo: format!("the submodule `{name}` at {path} of {label}"),
            url: url.to_owned(),
            why: why.to_owned(),
        };
        let Some(url) = says.get("url") else {
            return Err(fault("-", &format!("{FILE} does not say where it comes from")));
        };
        if !is_safe(name) {
            return Err(fault(url, "its name would lead out of the repository"));
        }
        entries.push(Entry {
            name: name.clone(),
            path,
            url: url.clone(),
            commit,
        });
    }
    Ok((entries, notes))
}

/// `key\nvalue\0…`
fn pairs(text: &str) -> impl Iterator<Item = (&str, String)> {
    text.split('\0').filter_map(|pair| {
        let (key, value) = pair.split_once('\n')?;
        Some((key, value.to_owned()))
    })
}

/// The commits in the commit's tree, by their place.
async fn commits(head: &MirrorCommit) -> Result<BTreeMap<String, String>, GitError> {
    let asks = ["ls-tree", "-r", "-z", "--full-tree", &head.commit];
    let said = git(head.mirror(), asks, LOCAL_PATIENCE).await?.stdout;
    let text = String::from_utf8_lossy(&said);
    let entries = text.split('\0').filter_map(|line| line.strip_prefix(COMMIT_ENTRY));
    let entries = entries.filter_map(|rest| rest.split_once('\t'));
    Ok(entries
        .map(|(commit, path)| (path.to_owned(), commit.to_owned()))
        .collect())
}

/// Whether a name is a place below another, as git wants names to be.
fn is_safe(name: &str) -> bool {
    !name.is_empty()
        && name
            .split(['/', '\\'])
            .all(|part| !part.is_empty() && part != ".." && part != ".")
}

/// The URL of a submodule whose parent comes from `parent`; or why nothing is fetched from there.
pub fn resolve(parent: &str, url: &str) -> Result<String, String> {
    let full = if url.starts_with("./") || url.starts_with("../") {
        relative(parent, url).ok_or_else(|| format!("it leads out of {parent}"))?
    } else if url.starts_with('/') {
        format!("file://{url}")
    } else {
        url.to_owned()
    };
    if is_fetchable(&full) {
        Ok(full)
    } else {
        Err("its URL must be https://, http://, ssh://, file:/// or user@host:path, without a password".to_owned())
    }
}

/// As git resolves it: each `../` takes one part off the parent's end.
fn relative(parent: &str, url: &str) -> Option<String> {
    let mut parent = parent.trim_end_matches('/');
    let mut rest = url;
    // What is cut at a colon continues behind it.
    let mut separator = '/';
    loop {
        if let Some(below) = rest.strip_prefix("../") {
            let host_end = parent.find("://").map_or(0, |at| at + "://".len());
            let at = parent[host_end..].rfind(['/', ':'])? + host_end;
            separator = char::from(parent.as_bytes()[at]);
            parent = &parent[..at];
            rest = below;
        } else if let Some(below) = rest.strip_prefix("./") {
            rest = below;
        } else {
            let rest = rest.trim_end_matches('/');
            return Some(format!("{parent}{separator}{rest}"));
        }
    }
}

/// What stands before `://` in a URL.
const SCHEMES: [&str; 5] = ["file", "git", "http", "https", "ssh"];

/// What a project's own repository may be fetched from: nothing that runs a program or is taken for an option.
pub fn is_fetchable(url: &str) -> bool {
    if url.chars().any(char::is_control) || url.contains("::") && !url.contains("://[") {
        return false;
    }
    match url.split_once("://") {
        Some(("https" | "http", rest)) => {
            let host = rest.split('/').next().unwrap_or_default();
            !(host.is_empty() || host.contains('@') || host.starts_with('-'))
        }
        Some(("ssh", rest)) => {
            let host = rest.split('/').next().unwrap_or_default();
            let (user, host) = host.rsplit_once('@').unwrap_or(("", host));
            !(host.is_empty() || host.starts_with('-') || user.contains(':') || user.starts_with('-'))
        }
        Some(("file", rest)) => rest.starts_with('/'),
        Some(_) => false,
        None => url.split_once(':').is_some_and(|(host, path)| {
            // Git takes `file:x` for a host of that name, which nobody means.
            !(host.is_empty()
                || SCHEMES.contains(&host)
                || host.contains('/')
                || host.starts_with('-')
                || path.is_empty()
                || path.starts_with('-'))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_urls_are_resolved_as_git_does() {
        for (parent, url, full) in [
            ("https://h/a/app.git", "../lib.git", "https://h/a/lib.git"),
            ("https://h/a/app.git/", "../../b/lib", "https://h/b/lib"),
            ("https://h/a/app", "./sub", "https://h/a/app/sub"),
            ("git@h:app.git", "../lib.git", "git@h:lib.git"),
            ("git@h:a/app.git", "../../b/lib.git", "git@h:b/lib.git"),
            ("ssh://git@h:22/a/app", "../lib/", "ssh://git@h:22/a/lib"),
            ("file:///srv/app", "../lib", "file:///srv/lib"),
            ("file:///srv/app", "/opt/lib", "file:///opt/lib"),
            ("https://h/app", "git@other:x/y", "git@other:x/y"),
        ] {
            assert_eq!(resolve(parent, url).as_deref(), Ok(full), "{parent} {url}");
        }
    }

    #[test]
    fn urls_that_run_programs_or_hold_passwords_are_refused() {
        for url in [
            "ext::sh -c id",
            "-oProxyCommand=id",
            "--upload-pack=id",
            "ssh://-oProxyCommand=id/x",
            "https://user:secret@h/x",
            "ssh://git:secret@h/x",
            "git://h/x",
            "file:x",
            "lib",
            "-h:x",
            "h:-x",
            "https://h/\u{7}",
        ] {
            assert!(resolve("https://h/app", url).is_err(), "{url}");
        }
        assert!(resolve("https://h/app", "../../../../x").is_err());
    }

    #[test]
    fn names_lead_nowhere_else() {
        for name in ["", "..", "a/../b", "a//b", "/a", "a\\..\\b", "."] {
            assert!(!is_safe(name), "{name}");
        }
        assert!(is_safe("my lib.x") && is_safe("deps/lib"));
    }
}
