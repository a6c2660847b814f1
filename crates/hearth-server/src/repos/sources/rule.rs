//! One rule of the installation about where the projects of other tenants may fetch from, as `hearth serve --source` takes it.

use std::fmt::{self, Display};
use std::str::FromStr;

use super::location::{Location, Scheme, plain_host};
use hearth_core::tenant::FIRST_TENANT;

/// How a rule is written, for a person who wrote it otherwise.
const FORM: &str = "write it like `allow=https://git.corp.example`, `tenant=beta allow=file:///srv/git/*` or \
                    `deny=ssh://*`";

/// A rule: `[tenant=NAME] allow=PATTERN|deny=PATTERN [credentials=server]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceRule {
    text: String,
    allows: bool,
    /// `None`: every tenant but the first.
    tenant: Option<String>,
    scheme: Scheme,
    hosts: Hosts,
    /// `None`: any.
    port: Option<u16>,
    paths: Paths,
    lends: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    Any,
    /// Names that end like this, a dot first.
    Below(String),
    One(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Paths {
    Any,
    Beginning(String),
    One(String),
}

impl Hosts {
    fn blocker(&self, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Below(end) => host.ends_with(end.as_str()),
            Self::One(one) => host == one,
        }
    }
}

impl Paths {
    fn of(text: &str) -> Result<Self, String> {
        let is_whole = matches!(text, "" | "/" | "/*");
        let beginning = text.strip_suffix('*');
        if text.contains("/../") || text.contains("/./") || beginning.unwrap_or(text).contains('*') {
            return Err("a path has one `*`, at its end, and no `.` or `..`".to_owned());
        }
        Ok(match beginning {
            _ if is_whole => Self::Any,
            Some(beginning) => Self::Beginning(beginning.to_owned()),
            None => Self::One(text.to_owned()),
        })
    }

    fn blocker(&self, path: Option<&str>) -> bool {
        match (self, path) {
            (Self::Any, _) => true,
            (Self::Beginning(beginning), Some(path)) => path.starts_with(beginning.as_str()),
            (Self::One(one), Some(path)) => path == one,
            (_, None) => false,
        }
    }
}

impl SourceRule {
    /// Whether it lets through or refuses.
    pub(super) fn allows(&self) -> bool {
        self.allows
    }

    /// Whether what it lets through is fetched with the server user's own credentials.
    pub(super) fn lends(&self) -> bool {
        self.lends
    }

    /// Whether it is about this tenant.
    pub(super) fn concerns(&self, tenant: &str) -> bool {
        self.tenant.as_deref().is_none_or(|only| only == tenant)
    }

    /// Whether it is about this place.
    pub(super) fn is_about(&self, location: &Location) -> bool {
        self.is_about_host(location.scheme, &location.host, location.port)
            && self.paths.blocker(location.path.as_deref())
    }

    /// Whether it is about everything that this host has at this port.
    pub(super) fn is_about_all_of(&self, scheme: Scheme, host: &str, port: u16) -> bool {
        self.paths == Paths::Any && self.is_about_host(scheme, host, port)
    }

    fn is_about_host(&self, scheme: Scheme, host: &str, port: u16) -> bool {
        self.scheme == scheme && self.hosts.blocker(host) && self.port.is_none_or(|only| only == port)
    }

    /// Whether it is about some paths of its hosts and not about others.
    pub(super) fn has_path(&self) -> bool {
        self.paths != Paths::Any
    }

    /// The folder, on this server, that everything it is about lies in.
    pub(super) fn folder(&self) -> &str {
        match &self.paths {
            Paths::Any => "/",
            Paths::One(path) => path,
            Paths::Beginning(beginning) => beginning.rsplit_once('/').map_or("/", |(folder, _)| folder),
        }
    }
}

impl Display for SourceRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Scheme, hosts, port and paths of a pattern.
fn pattern(text: &str) -> Result<(Scheme, Hosts, Option<u16>, Paths), String> {
    let (scheme, rest) = text
        .split_once("://")
        .ok_or_else(|| format!("`{text}` is no address; {FORM}"))?;
    let scheme = Scheme::of(scheme)
        .ok_or_else(|| format!("`{scheme}://` is not known: use https://, ssh://, http:// or file://"))?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let paths = Paths::of(path)?;
    if scheme == Scheme::File {
        if !authority.is_empty() || path.is_empty() {
            return Err(format!("`{text}` names no path: write it like file:///srv/git/*"));
        }
        return Ok((scheme, Hosts::Any, None, paths));
    }
    if authority.contains('@') {
        return Err(format!("`{text}` names a user: a rule is about hosts"));
    }
    // The colon of a port, and not one within the brackets of an IPv6 address.
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let port = match port {
        None if host == "*" => None,
        None => Some(scheme.default_port()),
        Some("*") => None,
        Some(port) => Some(port.parse().map_err(|_| format!("`{port}` is no port"))?),
    };
    let one = |host: &str| {
        let good = plain_host(host).filter(|host| !host.contains('*'));
        good.ok_or_else(|| format!("`{host}` is no host: write a name, an address, `*.corp.example` or `*`"))
    };
    let hosts = match host.strip_prefix("*.") {
        _ if host == "*" => Hosts::Any,
        Some(end) => Hosts::Below(format!(".{}", one(end)?)),
        None => Hosts::One(one(host)?),
    };
    Ok((scheme, hosts, port, paths))
}

impl FromStr for SourceRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut tenant, mut place, mut lends) = (None, None, false);
        for word in text.split_whitespace() {
            let (key, value) = word
                .split_once('=')
                .ok_or_else(|| format!("`{word}` is no `key=value`; {FORM}"))?;
            match key {
                "tenant" if tenant.is_none() && !value.is_empty() => tenant = Some(value.to_owned()),
                "allow" | "deny" if place.is_none() => place = Some((key == "allow", pattern(value)?)),
                "credentials" if value == "server" => lends = true,
                "credentials" => return Err("write `credentials=server`: those of the server's own user".to_owned()),
                "tenant" | "allow" | "deny" => {
                    return Err(format!("`{key}` stands once in a rule, with a value; {FORM}"));
                }
                _ => return Err(format!("`{key}` is not known in a rule; {FORM}")),
            }
        }
        let (allows, (scheme, hosts, port, paths)) = place.ok_or_else(|| format!("a rule allows or denies; {FORM}"))?;
        if tenant.as_deref() == Some(FIRST_TENANT) {
            return Err(format!(
                "`{FIRST_TENANT}` is the installation's first tenant: it may fetch from everywhere, rules are about others"
            ));
        }
        let can_lend = allows && scheme != Scheme::File && hosts != Hosts::Any;
        if lends && !can_lend {
            return Err(
                "`credentials=server` goes with `allow=` and a host: credentials are not lent to every host".to_owned(),
            );
        }
        Ok(Self {
            text: text.split_whitespace().collect::<Vec<_>>().join(" "),
            allows,
            tenant,
            scheme,
            hosts,
            port,
            paths,
            lends,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(rule: &str, url: &str) -> bool {
        let rule: SourceRule = rule.parse().unwrap();
        rule.is_about(&Location::of(url).unwrap())
    }

    #[test]
    fn a_rule_is_about_what_it_names_and_nothing_else() {
        for (rule, urls, others) in [
            (
                "allow=https://git.corp.example",
                vec!["https://git.corp.example/a/b", "https://GIT.corp.example:443/x"],
                vec![
                    "https://git.corp.example:8443/a",
                    "http://git.corp.example/a",
                    "https://corp.example/a",
                    "https://git.corp.example.evil.example/a",
                    "git@git.corp.example:a/b",
                ],
            ),
            (
                "allow=https://*.corp.example:*/team/*",
                vec!["https://a.corp.example:8443/team/x"],
                vec![
                    "https://corp.example/team/x",
                    "https://a.corp.example/team",
                    "https://a.corp.example/team/../secret/x",
                    "https://a.corp.example/team/%2e%2e/secret/x",
                    "https://evilcorp.example/team/x",
                ],
            ),
            (
                "allow=http://[::1]:3000",
                vec!["http://[::1]:3000/x"],
                vec!["http://[::1]/x"],
            ),
            ("deny=ssh://*", vec!["git@h:a", "ssh://h:2222/a"], vec!["https://h/a"]),
            (
                "tenant=beta allow=file:///srv/git/*",
                vec!["file:///srv/git/a", "file:///srv/git/a/b.git"],
                vec![
                    "file:///srv/git",
                    "file:///srv/gitx/a",
                    "file:///srv/git/../x",
                    "file:///srv/git/%2e%2e/x",
                ],
            ),
            (
                "allow=file:///srv/a",
                vec!["file:///srv/a"],
                vec!["file:///srv/a/b", "file:///srv/ab"],
            ),
        ] {
            for url in urls {
                assert!(holds(rule, url), "{rule}: {url}");
            }
            for url in others {
                assert!(!holds(rule, url), "{rule}: {url}");
            }
        }
    }

    #[test]
    fn what_is_no_rule_says_why() {
        for (text, says) in [
            ("", "allows or denies"),
            ("https://git.corp.example", "no `key=value`"),
            ("allow=git.corp.example", "no address"),
            ("allow=git://h", "not known: use https://"),
            ("allow=https://", "no host"),
            ("allow=https://a*b", "no host"),
            ("allow=https://h:x", "no port"),
            ("allow=https://me@h", "names a user"),
            ("allow=https://h/a*b*", "one `*`"),
            ("allow=file://h/x", "no path"),
            ("allow=https://h deny=https://i", "stands once"),
            ("tenant=default allow=https://h", "first tenant"),
            ("tenant= allow=https://h", "stands once"),
            ("allow=https://* credentials=server", "not lent to every host"),
            ("deny=https://h credentials=server", "not lent to every host"),
            ("allow=https://h credentials=mine", "credentials=server"),
            ("permit=https://h", "not known in a rule"),
        ] {
            let error = text.parse::<SourceRule>().unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
        let rule: SourceRule = " tenant=beta   allow=https://h  credentials=server ".parse().unwrap();
        assert_eq!(rule.to_string(), "tenant=beta allow=https://h credentials=server");
        assert!(rule.concerns("beta") && !rule.concerns("gamma") && rule.lends());
    }
}
