//! Where a repository is, whichever of its addresses says so, and which repository a webhook speaks of. A match too many
//! costs one poll; one too few costs the wait until the next timed poll.

use std::collections::BTreeSet;

use serde_json::{Map, Value};
use url::Url;

/// Where git hosts write addresses of the repository in a webhook's body.
const ADDRESSES: [&str; 11] = [
    "clone_url",
    "git_http_url",
    "git_ssh_url",
    "git_url",
    "homepage",
    "html_url",
    "http_url",
    "ssh_url",
    "svn_url",
    "url",
    "web_url",
];
/// Where they write its name.
const NAMES: [&str; 2] = ["full_name", "path_with_namespace"];

/// Host and path of a repository, without what differs between its addresses: scheme, user, port, `.git`, a slash at the
/// end, upper and lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RepoAddress {
    host: String,
    path: String,
}

impl RepoAddress {
    /// `None` when the text is no address.
    pub(super) fn of(address: &str) -> Option<Self> {
        let address = address.trim();
        let url = if address.contains("://") {
            Url::parse(address).ok()?
        } else {
            // What git calls the scp-like form: `user@host:path`.
            let (host, path) = address.split_once(':')?;
            Url::parse(&format!("ssh://{host}/{}", path.trim_start_matches('/'))).ok()?
        };
        let path = url.path().trim_matches('/').to_lowercase();
        let path = path.strip_suffix(".git").unwrap_or(&path).trim_end_matches('/');
        if path.is_empty() {
            return None;
        }
        Some(Self {
            host: url.host_str().unwrap_or_default().to_lowercase(),
            path: path.to_owned(),
        })
    }
}

/// The repository that a webhook speaks of.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Pushed {
    addresses: BTreeSet<RepoAddress>,
    names: BTreeSet<String>,
}

impl Pushed {
    /// Reads it from a webhook's body. What is missing or of another kind says nothing.
    pub(crate) fn read(body: &Map<String, Value>) -> Self {
        let mut pushed = Self::default();
        for object in ["repository", "project"] {
            let Some(object) = body.get(object) else {
                continue;
            };
            let texts = |keys: &'static [&str]| keys.iter().filter_map(|key| object.get(key)?.as_str());
            pushed.addresses.extend(texts(&ADDRESSES).filter_map(RepoAddress::of));
            pushed.names.extend(texts(&NAMES).map(str::to_lowercase));
        }
        pushed
    }

    pub(super) fn is_at(&self, address: Option<&RepoAddress>) -> bool {
        address.is_some_and(|address| self.addresses.contains(address))
    }

    pub(super) fn is_called(&self, name: &str) -> bool {
        self.names.contains(&name.to_lowercase())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_addresses_of_a_repository_are_one_place() {
        let address = RepoAddress::of("https://git.example.org/acme/app").unwrap();
        for text in [
            "https://git.example.org/acme/app.git",
            "https://git.example.org/acme/app.git/",
            "https://git.example.org/acme/app///",
            "http://Git.Example.ORG:8080/Acme/App",
            "https://user@git.example.org/acme/app",
            "ssh://git@git.example.org:2222/acme/app.git",
            "ssh://GIT.example.org/acme/app",
            "git://git.example.org/acme/app.git",
            "git@git.example.org:acme/app.git",
            "git.example.org:/acme/app",
            "  git@git.example.org:acme/app  ",
        ] {
            assert_eq!(RepoAddress::of(text), Some(address.clone()), "{text}");
        }
        for other in [
            "https://git.example.org/acme/app2",
            "https://git.example.org/acme",
            "https://example.org/acme/app",
            "file:///acme/app",
        ] {
            assert_ne!(RepoAddress::of(other), Some(address.clone()), "{other}");
        }
        for none in [
            "",
            "x",
            "acme/app",
            "https://",
            "https://h",
            "https://h/",
            "https://[/x",
            ":",
            "://",
            "a:",
        ] {
            assert_eq!(RepoAddress::of(none), None, "{none}");
        }
        assert_eq!(
            RepoAddress::of("file:///srv/git/app.git"),
            RepoAddress::of("file:///srv/git/app/")
        );
        assert!(RepoAddress::of("file:///srv/git/app").is_some());
    }

    #[test]
    fn each_forges_body_names_its_repository() {
        let read = |body: Value| Pushed::read(body.as_object().unwrap());
        let address = RepoAddress::of("git@h:acme/app.git");
        let (github, gitlab, gitea) = (
            json!({ "repository": {
                "full_name": "Acme/App", "url": "https://api.h/repos/acme/app", "clone_url": "https://h/acme/app.git"
            } }),
            json!({
                "project": { "path_with_namespace": "acme/app", "web_url": "https://h/acme/app" },
                "repository": { "name": "app", "git_ssh_url": "git@h:acme/app.git" }
            }),
            json!({ "repository": { "full_name": "acme/app", "ssh_url": "ssh://git@h:22/acme/app.git" } }),
        );
        for body in [github, gitlab, gitea] {
            let pushed = read(body.clone());
            assert!(pushed.is_at(address.as_ref()) && pushed.is_called("acme/app"), "{body}");
            assert!(!pushed.is_called("acme/other"));
        }
        for nothing in [
            json!({}),
            json!({ "repository": null }),
            json!({ "repository": "acme/app", "project": [1] }),
            json!({ "repository": { "full_name": 7, "clone_url": {} } }),
        ] {
            assert_eq!(read(nothing), Pushed::default());
        }
        assert!(!Pushed::default().is_at(None));
    }
}
