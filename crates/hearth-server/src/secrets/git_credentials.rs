//! Which of a project's git credentials is for which server.

use hearth_api::credential::CredentialKind;

use crate::store::CredentialRow;

/// The user name of a token that none was given for: what the usual hosts take with any token.
const ANY_USER: &str = "x-access-token";

/// How git talks to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Not encrypted.
    Http,
    /// The usual one for tokens.
    Https,
    /// The one for keys.
    Ssh,
}

impl Protocol {
    /// Of this name.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        let all = [Self::Http, Self::Https, Self::Ssh];
        all.into_iter().find(|protocol| protocol.as_str() == name)
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Ssh => "ssh",
        }
    }

    fn usual_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
            Self::Ssh => 22,
        }
    }

    fn kind(self) -> CredentialKind {
        match self {
            Self::Http | Self::Https => CredentialKind::Token,
            Self::Ssh => CredentialKind::Key,
        }
    }
}

/// A git server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// How it is talked to.
    pub protocol: Protocol,
    /// Small letters, without brackets.
    pub host: String,
    /// Which port.
    pub port: u16,
}

impl Place {
    /// As git's credential helpers are asked: `host` or `host:port`.
    #[must_use]
    pub fn asked(protocol: &str, host: &str) -> Option<Self> {
        let protocol = Protocol::of(protocol)?;
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) if !port.contains(']') => (name, port.parse().ok()?),
            _ => (host, protocol.usual_port()),
        };
        let host = name.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        Some(Self { protocol, host, port })
    }

    /// The address of everything there, as git's settings name it.
    #[must_use]
    pub fn url(&self) -> String {
        let port = match self.port {
            port if port == self.protocol.usual_port() => String::new(),
            port => format!(":{port}"),
        };
        format!("{}://{}{port}", self.protocol.as_str(), self.bracketed())
    }

    fn bracketed(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        }
    }

    fn names(&self) -> Vec<String> {
        let host = self.bracketed();
        let mut names = vec![format!("{host}:{}", self.port)];
        if self.port == self.protocol.usual_port() {
            names.push(host);
        }
        names
    }
}

/// The one for this server; one that names the port goes before one that does not. A token goes unencrypted only where that was said.
#[must_use]
pub fn find(all: Vec<CredentialRow>, place: &Place) -> Option<CredentialRow> {
    let names = place.names();
    let fits =
        |row: &CredentialRow| row.kind == place.protocol.kind() && (place.protocol != Protocol::Http || row.allow_http);
    let rank = |row: &CredentialRow| names.iter().position(|name| *name == row.host);
    let found = all.into_iter().filter(fits);
    let found = found.filter_map(|row| Some((rank(&row)?, row)));
    found.min_by_key(|(rank, _)| *rank).map(|(_, row)| row)
}

/// Who a token is said to be of.
#[must_use]
pub fn username(row: &CredentialRow) -> &str {
    row.username.as_deref().unwrap_or(ANY_USER)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(host: &str, kind: CredentialKind, allow_http: bool) -> CredentialRow {
        CredentialRow {
            host: host.to_owned(),
            kind,
            username: None,
            allow_http,
            secret: format!("{host} {}", kind.as_str()),
        }
    }

    #[test]
    fn credential_is_given_to_its_own_server_and_port_only() {
        let all = || {
            vec![
                row("git.example", CredentialKind::Token, false),
                row("git.example", CredentialKind::Key, false),
                row("git.example:443", CredentialKind::Token, false),
                row("git.example:8443", CredentialKind::Token, false),
                row("plain.example:3000", CredentialKind::Token, true),
                row("[::1]:3000", CredentialKind::Token, true),
            ]
        };
        for (protocol, host, found) in [
            ("https", "git.example", Some("git.example:443 token")),
            ("https", "GIT.example:443", Some("git.example:443 token")),
            ("https", "git.example:8443", Some("git.example:8443 token")),
            ("https", "git.example:8444", None),
            ("http", "git.example", None),
            ("http", "plain.example:3000", Some("plain.example:3000 token")),
            ("https", "plain.example:3000", Some("plain.example:3000 token")),
            ("https", "plain.example", None),
            ("http", "[::1]:3000", Some("[::1]:3000 token")),
            ("ssh", "git.example", Some("git.example key")),
            ("ssh", "git.example:2222", None),
            ("https", "sub.git.example", None),
            ("https", "git.example.evil", None),
            ("ftp", "git.example", None),
            ("https", "git.example:x", None),
        ] {
            let place = Place::asked(protocol, host);
            let secret = place.and_then(|place| find(all(), &place)).map(|row| row.secret);
            assert_eq!(secret.as_deref(), found, "{protocol} {host}");
        }
    }
}
