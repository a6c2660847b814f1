//! A repository's address, read as git reads it: what protocol, which host and port, which path.

use std::net::IpAddr;

use url::Url;

/// How git talks to a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    /// A path on the server.
    File,
    /// Not encrypted.
    Http,
    Https,
    Ssh,
}

impl Scheme {
    const ALL: [Self; 4] = [Self::File, Self::Http, Self::Https, Self::Ssh];

    /// As addresses write it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Http => "http",
            Self::Https => "https",
            Self::Ssh => "ssh",
        }
    }

    /// The one of this name. Git knows lower case alone.
    pub(super) fn of(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scheme| scheme.as_str() == text)
    }

    /// The port where an address names none.
    pub(super) fn default_port(self) -> u16 {
        match self {
            Self::File => 0,
            Self::Http => 80,
            Self::Https => 443,
            Self::Ssh => 22,
        }
    }
}

/// Where a repository is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) scheme: Scheme,
    /// Lower case, without brackets and without a dot at the end; empty for a path on the server.
    pub(super) host: String,
    pub(super) port: u16,
    /// The path as it stands, if nobody can read it in two ways: one with dot segments, escapes, a query or a fragment is `None`,
    /// and no rule with a path of its own is about it.
    pub(super) path: Option<String>,
}

impl Location {
    /// `None`: git would not take it for one of the protocols that are known here.
    pub(super) fn of(text: &str) -> Option<Self> {
        let Some((scheme, _)) = text.split_once("://") else {
            return Self::of_scp(text);
        };
        let scheme = Scheme::of(scheme)?;
        let url = Url::parse(text).ok()?;
        if scheme == Scheme::File {
            let path = url.to_file_path().ok()?.to_str()?.to_owned();
            let (host, port) = (String::new(), scheme.default_port());
            let path = Some(path);
            return Some(Self {
                scheme,
                host,
                port,
                path,
            });
        }
        let host = plain_host(url.host_str()?)?;
        let port = url.port().unwrap_or(scheme.default_port());
        // What stands after the host, not what the parser makes of it.
        let after = text.split_once("://")?.1;
        let path = after.find('/').map_or("/", |at| &after[at..]);
        let has_rest = url.query().is_some() || url.fragment().is_some();
        let path = (!has_rest && is_plain(path)).then(|| path.to_owned());
        Some(Self {
            scheme,
            host,
            port,
            path,
        })
    }

    /// `user@host:path`, which git takes for SSH.
    fn of_scp(text: &str) -> Option<Self> {
        let (host, path) = text.split_once(':')?;
        if host.contains('/') {
            return None;
        }
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        let path = format!("/{}", path.trim_start_matches('/'));
        let scheme = Scheme::Ssh;
        Some(Self {
            scheme,
            host: plain_host(host)?,
            port: scheme.default_port(),
            path: is_plain(&path).then_some(path),
        })
    }

    /// The host's address, where it is one and no name.
    pub(super) fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// A name that means the server itself, whatever name servers say.
    pub(super) fn is_localhost(&self) -> bool {
        self.host == "localhost" || self.host.ends_with(".localhost")
    }
}

/// One spelling of each host.
pub(super) fn plain_host(host: &str) -> Option<String> {
    let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
    let is_good = !host.is_empty() && !host.starts_with('-') && !host.contains(['/', '@', ' ', '%']);
    is_good.then(|| host.to_ascii_lowercase())
}

fn is_plain(path: &str) -> bool {
    let has_dots = path.split('/').any(|part| part == "." || part == "..");
    !has_dots && !path.contains(['%', '\\'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> Option<(String, u16, Option<String>)> {
        let Location {
            scheme,
            host,
            port,
            path,
        } = Location::of(text)?;
        Some((format!("{}://{host}", scheme.as_str()), port, path))
    }

    #[test]
    fn addresses_are_read_as_git_reads_them() {
        for (text, origin, port, path) in [
            ("https://H.example./a/b.git", "https://h.example", 443, Some("/a/b.git")),
            ("https://h:8443", "https://h", 8443, Some("/")),
            ("http://2130706433/x", "http://127.0.0.1", 80, Some("/x")),
            ("https://0x7f.1/x", "https://127.0.0.1", 443, Some("/x")),
            ("https://[::ffff:127.0.0.1]/x", "https://::ffff:7f00:1", 443, Some("/x")),
            ("ssh://git@h:2222/a", "ssh://h", 2222, Some("/a")),
            ("git@h:a/b", "ssh://h", 22, Some("/a/b")),
            ("h:/a/b", "ssh://h", 22, Some("/a/b")),
            ("file:/etc/x", "ssh://file", 22, Some("/etc/x")),
            ("https://h/a/../b", "https://h", 443, None),
            ("https://h/a/%2e%2e/b", "https://h", 443, None),
            ("https://h/a?b", "https://h", 443, None),
            ("file:///srv/git/../x", "file://", 0, Some("/srv/x")),
            ("file:///srv/git/%2e%2e/x", "file://", 0, Some("/srv/x")),
        ] {
            let wanted = Some((origin.to_owned(), port, path.map(str::to_owned)));
            assert_eq!(parts(text), wanted, "{text}");
        }
        for text in [
            "",
            "/srv/git",
            "./a:b",
            "FILE:///etc",
            "file://host/etc",
            "git://h/a",
            "ext::sh -c id",
            "ftp://h/a",
            "https://",
            "-oProxyCommand=x:y",
        ] {
            let is_host = Location::of(text).is_some_and(|it| it.scheme != Scheme::Ssh || it.host.starts_with('-'));
            assert!(!is_host, "{text}: {:?}", parts(text));
        }
    }
}
