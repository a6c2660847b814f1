//! A repository as it is named on the command line: `org/name[@branch][=URL]`, or a plain URL.

use hearth_api::project::RepoInput;

/// The branch of a repository that is given without one.
const DEFAULT_BRANCH: &str = "main";

/// `org/name[@branch][=URL]` or a plain URL with an optional `#branch`.
pub(super) fn parse_repo(text: &str) -> Result<RepoInput, String> {
    if is_plain_url(text) {
        let (url, branch) = match text.rsplit_once('#') {
            Some((url, branch)) if !branch.is_empty() => (url, branch),
            _ => (text, DEFAULT_BRANCH),
        };
        return repo_input(&full_name_from(url)?, branch, Some(url));
    }
    let (name, url) = match text.split_once('=') {
        Some((name, url)) => (name, Some(url)),
        None => (text, None),
    };
    let (name, branch) = name.split_once('@').unwrap_or((name, DEFAULT_BRANCH));
    let parts: Vec<&str> = name.split('/').collect();
    if parts.len() != 2 || parts.iter().any(|part| part.is_empty()) || branch.is_empty() {
        return Err("write it as org/name[@branch][=URL], or give its URL alone".to_owned());
    }
    repo_input(name, branch, url)
}

/// The same in the API's form, or which part of it cannot be so.
fn repo_input(name: &str, branch: &str, url: Option<&str>) -> Result<RepoInput, String> {
    Ok(RepoInput {
        repo_full_name: name.parse().map_err(|fault| format!("its name {fault}"))?,
        branch: branch.parse().map_err(|fault| format!("its branch {fault}"))?,
        url: url
            .map(str::parse)
            .transpose()
            .map_err(|fault| format!("its URL {fault}"))?,
        lfs: None,
        submodules: None,
    })
}

/// `scheme://…` or `user@host:path`, and not a URL after `org/name=`.
fn is_plain_url(text: &str) -> bool {
    let head = text.split('=').next().unwrap_or_default();
    if head.contains("://") {
        return true;
    }
    match head.split_once(':') {
        Some((host, path)) => host.contains('@') && !host.contains('/') && !path.is_empty(),
        None => false,
    }
}

/// The last two parts of a URL's path; `local/name` when there is but one.
fn full_name_from(url: &str) -> Result<String, String> {
    let path = match url.split_once("://") {
        Some(("file", path)) => path,
        // The host is no part of the name.
        Some((_, rest)) => rest.split_once('/').map_or("", |(_, path)| path),
        None => url.split_once(':').map_or("", |(_, path)| path),
    };
    let path = path.trim_end_matches('/');
    let path = path.strip_suffix(".git").unwrap_or(path).trim_end_matches('/');
    let mut parts = path.rsplit('/').filter(|part| !part.is_empty()).map(tame);
    match (parts.next(), parts.next()) {
        (Some(name), Some(org)) => Ok(format!("{org}/{name}")),
        (Some(name), None) => Ok(format!("local/{name}")),
        _ => Err(format!(
            "no repository name can be taken from {url}: write it as org/name@branch={url}"
        )),
    }
}

/// A folder may be called anything; a repository's name may not.
fn tame(part: &str) -> String {
    let kept: String = part
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "._-".contains(c) {
                c
            } else {
                '-'
            }
        })
        .collect();
    let kept = kept.trim_start_matches(['.', '-']).to_owned();
    if kept.is_empty() { "repository".to_owned() } else { kept }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> (String, String, Option<String>) {
        let repo = parse_repo(text).unwrap();
        (
            repo.repo_full_name.into(),
            repo.branch.into(),
            repo.url.map(String::from),
        )
    }

    #[test]
    fn every_way_to_name_a_repository() {
        let case = |text: &str, name: &str, branch: &str, url: Option<&str>| {
            assert_eq!(
                parts(text),
                (name.to_owned(), branch.to_owned(), url.map(str::to_owned)),
                "{text}"
            );
        };
        case("acme/web", "acme/web", "main", None);
        case("acme/web@dev/x", "acme/web", "dev/x", None);
        case(
            "acme/web@dev=https://h/a.git?x=1",
            "acme/web",
            "dev",
            Some("https://h/a.git?x=1"),
        );
        case(
            "https://github.com/acme/web.git",
            "acme/web",
            "main",
            Some("https://github.com/acme/web.git"),
        );
        case("https://h/g/sub/web#dev", "sub/web", "dev", Some("https://h/g/sub/web"));
        case(
            "git@github.com:acme/web.git",
            "acme/web",
            "main",
            Some("git@github.com:acme/web.git"),
        );
        case(
            "ssh://git@h:2222/acme/web",
            "acme/web",
            "main",
            Some("ssh://git@h:2222/acme/web"),
        );
        case("file:///web.git", "local/web", "main", Some("file:///web.git"));
        case(
            "file:///srv/my code/.app",
            "my-code/app",
            "main",
            Some("file:///srv/my code/.app"),
        );
    }

    #[test]
    fn a_name_without_organisation_is_refused() {
        for text in ["web", "a/b/c", "/b", "a/b@", "https://host"] {
            assert!(parse_repo(text).is_err(), "{text}");
        }
    }
}
