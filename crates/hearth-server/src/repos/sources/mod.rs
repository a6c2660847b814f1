//! Where repositories may come from. The first tenant, which runs the installation, fetches as the server's user does: from
//! everywhere, with that user's credentials. Everybody else fetches by `https://` and `ssh://` from public addresses, without
//! credentials, unless a rule of the installation says otherwise. What an address's text tells is refused at once; the rest is
//! checked on the address that is really connected to ([`egress`], [`proxy`]).

mod credential;
mod egress;
mod fetch;
mod location;
mod proxy;
mod reach;
mod rule;

use std::path::PathBuf;
use std::sync::Arc;

use hearth_core::checkout::Remote;
use sha2::{Digest, Sha256};

use hearth_core::tenant::FIRST_TENANT;

use crate::store::Store;
use location::{Location, Scheme};

pub use credential::advice as credential_advice;
pub use fetch::{SourceError, known_hosts};
pub use reach::Reach;
pub use rule::SourceRule;

/// What holds where no rule says otherwise, as refusals name it.
const USUAL_RULE: &str = "https:// and ssh:// to public addresses only";

/// What a rule that denies does.
const CLOSED: &str = "the installation closes it";

/// Why a repository is not fetched, as a sentence that names the rule, and what would open the place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(Box<str>);

impl Refusal {
    fn new(tenant: &str, place: &str, why: &str, rule: &str, advice: &str) -> Self {
        let text =
            format!("{place} is not open to the tenant `{tenant}`: {why}; refused by the rule `{rule}`. {advice}");
        Self(text.into())
    }

    /// By a rule of the installation.
    fn by_rule(rule: &SourceRule, tenant: &str, place: &str, why: &str) -> Self {
        let advice = "Use another address, or ask the operator of the server";
        Self::new(tenant, place, why, &rule.to_string(), advice)
    }

    /// By what holds without rules. `pattern`: what a rule would have to allow.
    fn default_refusal(tenant: &str, place: &str, why: &str, pattern: Option<&str>) -> Self {
        let advice = match pattern {
            Some(pattern) => format!(
                "The operator of the server can open it: `hearth serve --source \"tenant={tenant} allow={pattern}\"`"
            ),
            None => "Use an address like https://git.example.org/org/name.git".to_owned(),
        };
        Self::new(tenant, place, why, USUAL_RULE, &advice)
    }
}

/// The policy. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sources {
    rules: Arc<[SourceRule]>,
    /// The SSH host keys that were met on behalf of tenants who are lent no configuration of the server's user.
    known_hosts: PathBuf,
    /// Where the projects' own credentials are.
    credentials: Option<Store>,
}

/// What somebody may fetch, and how.
#[derive(Debug, Clone)]
pub struct Grant {
    remote: Remote,
    access: Access,
}

#[derive(Debug, Clone)]
enum Access {
    /// As the server's user.
    Own,
    /// With the server user's credentials, from a place that a rule names.
    Lent(Location),
    /// A repository on the server that a rule names.
    Folder { path: PathBuf, rule: SourceRule },
    /// Without any credentials; from public addresses only, unless a rule names the place.
    Network {
        location: Location,
        rule: Option<SourceRule>,
    },
}

impl Sources {
    /// The policy of these rules; the first one that is about a place counts.
    #[must_use]
    pub fn new(rules: &[SourceRule], known_hosts: PathBuf) -> Self {
        Self {
            rules: rules.into(),
            known_hosts,
            credentials: None,
        }
    }

    /// The same, with the credentials that projects have.
    #[must_use]
    pub fn with_credentials(self, store: Store) -> Self {
        Self {
            credentials: Some(store),
            ..self
        }
    }

    fn rules_of<'a>(&'a self, tenant: &'a str) -> impl Iterator<Item = &'a SourceRule> {
        self.rules.iter().filter(move |rule| rule.concerns(tenant))
    }

    /// Whether this may be fetched, as far as the address's text tells.
    pub fn admit(&self, remote: &Remote) -> Result<Grant, Refusal> {
        let Remote { tenant, url, .. } = remote;
        let grant = |access| Grant {
            remote: remote.clone(),
            access,
        };
        if tenant == FIRST_TENANT {
            return Ok(grant(Access::Own));
        }
        let place = format!("`{url}`");
        let no = |why: &str, pattern: Option<&str>| Refusal::default_refusal(tenant, &place, why, pattern);
        let location = Location::of(url).ok_or_else(|| no("it is no address on a network", None))?;
        let rule = self.rules_of(tenant).find(|rule| rule.is_about(&location));
        if let Some(rule) = rule {
            if !rule.allows() {
                return Err(Refusal::by_rule(rule, tenant, &place, CLOSED));
            }
            if location.scheme == Scheme::File {
                let path = location.path.unwrap_or_default().into();
                let rule = rule.clone();
                return Ok(grant(Access::Folder { path, rule }));
            }
            if rule.lends() {
                return Ok(grant(Access::Lent(location)));
            }
            let rule = Some(rule.clone());
            return Ok(grant(Access::Network { location, rule }));
        }
        match location.scheme {
            Scheme::File => return Err(no("it is a path on the server", Some(url.as_str()))),
            Scheme::Http => return Err(no("plain http:// is not encrypted", Some(&egress::pattern(&location)))),
            Scheme::Https | Scheme::Ssh => {}
        }
        egress::check_text(&location).map_err(|why| no(&why, Some(&egress::pattern(&location))))?;
        Ok(grant(Access::Network { location, rule: None }))
    }
}

impl Grant {
    /// Names what is fetched under it: what somebody else fetched from the same address, or with credentials, is another thing.
    #[must_use]
    pub fn key(&self) -> String {
        let Remote { tenant, project, url } = &self.remote;
        let access = match &self.access {
            Access::Own if project.is_none() => return hex::encode(Sha256::digest(url)),
            Access::Own => "own",
            Access::Lent(_) => "lent",
            Access::Folder { .. } => "folder",
            Access::Network { rule: Some(_), .. } => "listed",
            Access::Network { rule: None, .. } => "public",
        };
        let mut digest = Sha256::new_with_prefix(format!("{tenant}\0{access}\0{url}"));
        if let Some(project) = project {
            digest.update(format!("\0{project}"));
        }
        hex::encode(digest.finalize())
    }

    /// Whether Git LFS works under it. A server that is asked by SSH sends to one of HTTP, and who may speak SSH to one host as nobody
    /// has no way to that.
    #[must_use]
    pub fn takes_lfs(&self) -> bool {
        !matches!(&self.access, Access::Network { location, .. } if location.scheme == Scheme::Ssh)
    }

    /// What to look at when it cannot be fetched.
    #[must_use]
    pub fn advice(&self) -> String {
        let is_plain = self.remote.url.starts_with("http://");
        let over_http = if is_plain {
            "; over plain http:// a token is sent only where it was set with `--allow-http`"
        } else {
            ""
        };
        format!("{}{over_http}", self.advice_by_access())
    }

    fn advice_by_access(&self) -> &'static str {
        match self.access {
            Access::Own if self.remote.url.starts_with("file:") => {
                "check the address, and that the server's user may read it; git reads a repository that belongs to another user only when \
                 the server's user has said so: `git config --global --add safe.directory PATH`"
            }
            Access::Own | Access::Lent(_) => {
                "check the address, and that the server's user may read it (git credentials, SSH key), or give the project a \
                 credential of its own (`hearth credential set PROJECT HOST`)"
            }
            Access::Folder { .. } => "check the address, and that the server's user may read it",
            Access::Network { .. } => {
                "check the address, and that anybody may read it, or give the project a credential of its own (`hearth credential \
                 set PROJECT HOST`): only the first tenant, and whom a `--source` rule with `credentials=server` names, fetches with the \
                 credentials of the server's user"
            }
        }
    }
}
