//! What changes in the headers of a request and of its answer on their way through: pure.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use url::{Position, Url};

/// Headers of one connection, which is not the next one's.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
/// Names by which a server in the VM may call itself.
const OWN_NAMES: [&str; 4] = ["localhost", "127.0.0.1", "[::1]", "0.0.0.0"];

/// How a port is reached from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outside {
    /// The port in the VM.
    pub port: u16,
    /// The path below which it is reached; empty where it has a host of its own.
    pub prefix: String,
    /// The host that the client named.
    pub host: Option<String>,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The client's address.
    pub client: Option<String>,
}

/// The protocol that a request, or its answer, changes to.
pub fn upgrade_of(headers: &HeaderMap) -> Option<HeaderValue> {
    let asks = headers.get_all(header::CONNECTION).iter().any(|value| {
        let names = value.to_str().unwrap_or_default().split(',');
        names
            .into_iter()
            .any(|name| name.trim().eq_ignore_ascii_case("upgrade"))
    });
    headers.get(header::UPGRADE).filter(|_| asks).cloned()
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// A request's headers as the server in the VM gets them.
pub fn request(headers: &mut HeaderMap, outside: &Outside, upgrade: Option<&HeaderValue>) {
    remove_hop_by_hop(headers);
    // We answer it ourselves, when the body is read.
    headers.remove(header::EXPECT);
    headers.remove(header::FORWARDED);
    let own = format!("localhost:{}", outside.port);
    // A page that was loaded through us asks as the server's own page would: else development servers refuse it.
    let from_us = headers.get(header::ORIGIN).and_then(|origin| {
        let (_, host) = origin.to_str().ok()?.split_once("://")?;
        Some(outside.host.as_deref()?.eq_ignore_ascii_case(host))
    });
    if from_us == Some(true) {
        put(headers, header::ORIGIN, &format!("http://{own}"));
    }
    // Development servers refuse hosts that they do not know.
    put(headers, header::HOST, &own);
    if let Some(client) = &outside.client {
        let before = headers.get(FORWARDED_FOR).and_then(|value| value.to_str().ok());
        let all = before.map_or_else(|| client.clone(), |before| format!("{before}, {client}"));
        put(headers, FORWARDED_FOR, &all);
    }
    if let Some(host) = &outside.host {
        put(headers, FORWARDED_HOST, host);
    }
    put(headers, FORWARDED_PROTO, outside.scheme);
    headers.remove(FORWARDED_PREFIX);
    if !outside.prefix.is_empty() {
        put(headers, FORWARDED_PREFIX, &outside.prefix);
    }
    put_upgrade(headers, upgrade);
}

/// An answer's headers as the client gets them.
pub fn answer(headers: &mut HeaderMap, outside: &Outside, upgrade: Option<&HeaderValue>) {
    remove_hop_by_hop(headers);
    // These would be about this whole server, not about one port of a VM.
    for name in ["strict-transport-security", "alt-svc", "public-key-pins"] {
        headers.remove(name);
    }
    if !outside.prefix.is_empty() {
        // The pages are on the same host: a server in a VM gets no hold of the windows they are opened in.
        for name in [
            "service-worker-allowed",
            "clear-site-data",
            "cross-origin-opener-policy",
        ] {
            headers.remove(name);
        }
    }
    if let Some(to) = headers.get(header::LOCATION).and_then(|value| value.to_str().ok()) {
        let to = location(to, outside);
        put(headers, header::LOCATION, &to);
    }
    let cookies: Vec<HeaderValue> = headers.get_all(header::SET_COOKIE).iter().cloned().collect();
    headers.remove(header::SET_COOKIE);
    for cookie in cookies {
        if let Some(cookie) = set_cookie(&cookie, &outside.prefix) {
            headers.append(header::SET_COOKIE, cookie);
        }
    }
    put_upgrade(headers, upgrade);
}

fn put_upgrade(headers: &mut HeaderMap, upgrade: Option<&HeaderValue>) {
    if let Some(protocol) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, protocol.clone());
    }
}

/// A value that no header can hold changes nothing.
fn put(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Where a redirect leads, from outside. Other places stay what they are.
fn location(to: &str, outside: &Outside) -> String {
    if to.starts_with("//") {
        return to.to_owned();
    }
    if to.starts_with('/') {
        return below(to, &outside.prefix);
    }
    let Ok(url) = Url::parse(to) else {
        return to.to_owned();
    };
    if !matches!(url.scheme(), "http" | "https") {
        return to.to_owned();
    }
    let names_itself = url.host_str().is_some_and(|host| OWN_NAMES.contains(&host))
        && url.port_or_known_default() == Some(outside.port);
    let names_us = outside.host.as_deref() == Some(&url[Position::BeforeHost..Position::AfterPort]);
    if names_itself || names_us {
        below(&url[Position::BeforePath..], &outside.prefix)
    } else {
        to.to_owned()
    }
}

/// A path of the server in the VM, from outside. One that already has the prefix comes from a server that minds it.
fn below(path: &str, prefix: &str) -> String {
    let rest = path.strip_prefix(prefix);
    if prefix.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?', '#'])) {
        path.to_owned()
    } else {
        format!("{prefix}{path}")
    }
}

/// A cookie of the server in the VM, for its own place alone; none that looks like one of ours.
fn set_cookie(cookie: &HeaderValue, prefix: &str) -> Option<HeaderValue> {
    let Ok(text) = cookie.to_str() else {
        return Some(cookie.clone());
    };
    if text.trim_start().starts_with(super::visitor::COOKIE_PREFIX) {
        return None;
    }
    let kept = text.split(';').enumerate().filter_map(|(at, part)| {
        if at == 0 {
            return Some(part.to_owned());
        }
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        match name.trim().to_ascii_lowercase().as_str() {
            "domain" => None,
            "path" => Some(format!(" Path={}", below(value.trim(), prefix))),
            _ => Some(part.to_owned()),
        }
    });
    let text: Vec<String> = kept.collect();
    HeaderValue::from_str(&text.join(";")).ok()
}

/// Takes the cookies whose names begin like this out of a request.
pub fn take_cookies(headers: &mut HeaderMap, prefix: &str) -> Vec<(String, String)> {
    let mut taken = Vec::new();
    let mut kept = Vec::new();
    for value in headers.get_all(header::COOKIE) {
        let Ok(text) = value.to_str() else {
            kept.push(value.clone());
            continue;
        };
        let (ours, others): (Vec<&str>, Vec<&str>) = text
            .split(';')
            .map(str::trim)
            .partition(|pair| pair.starts_with(prefix));
        taken.extend(ours.iter().filter_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        }));
        let others = others.join("; ");
        if !others.is_empty()
            && let Ok(others) = HeaderValue::from_str(&others)
        {
            kept.push(others);
        }
    }
    headers.remove(header::COOKIE);
    for value in kept {
        headers.append(header::COOKIE, value);
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outside(prefix: &str) -> Outside {
        Outside {
            port: 3000,
            prefix: prefix.to_owned(),
            host: Some("hearth.example.org".to_owned()),
            scheme: "https",
            client: Some("192.0.2.7".to_owned()),
        }
    }

    #[test]
    fn redirects_stay_with_the_port() {
        for (to, expected) in [
            ("/login?next=%2F", "/p/3000/login?next=%2F"),
            ("login", "login"),
            ("http://localhost:3000/a", "/p/3000/a"),
            ("http://127.0.0.1:3000", "/p/3000/"),
            ("http://[::1]:3000/a#b", "/p/3000/a#b"),
            ("https://hearth.example.org/p/3000/a", "/p/3000/a"),
            ("https://hearth.example.org/a", "/p/3000/a"),
            ("/p/3000/a", "/p/3000/a"),
            ("/p/30001", "/p/3000/p/30001"),
            ("http://localhost:4000/a", "http://localhost:4000/a"),
            ("https://example.com/", "https://example.com/"),
            ("//example.com/", "//example.com/"),
            ("mailto:a@example.com", "mailto:a@example.com"),
        ] {
            assert_eq!(location(to, &outside("/p/3000")), expected, "{to}");
        }
        assert_eq!(location("http://localhost:3000/a", &outside("")), "/a");
        assert_eq!(location("/a", &outside("")), "/a");
    }

    #[test]
    fn cookies_are_for_the_port_alone() {
        for (cookie, expected) in [
            ("a=1", Some("a=1")),
            (
                "a=1; Path=/; Domain=localhost; HttpOnly",
                Some("a=1; Path=/p/3000/; HttpOnly"),
            ),
            ("a=1;path=/x", Some("a=1; Path=/p/3000/x")),
            ("hearth_share=1; Path=/", None),
        ] {
            let given = HeaderValue::from_static(cookie);
            let becomes = set_cookie(&given, "/p/3000");
            assert_eq!(
                becomes.as_ref().map(|value| value.to_str().unwrap()),
                expected,
                "{cookie}"
            );
        }
    }

    #[test]
    fn request_is_one_of_the_servers_own_place() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("host", "hearth.example.org"),
            ("origin", "https://hearth.example.org"),
            ("connection", "keep-alive, x-mine"),
            ("keep-alive", "timeout=5"),
            ("x-mine", "1"),
            ("te", "trailers"),
            ("x-forwarded-for", "198.51.100.1"),
            ("x-forwarded-prefix", "/forged"),
            ("expect", "100-continue"),
            ("accept", "text/html"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        request(&mut headers, &outside("/p/3000"), None);
        let mut found: Vec<_> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        found.sort();
        assert_eq!(
            found,
            [
                "accept: text/html",
                "host: localhost:3000",
                "origin: http://localhost:3000",
                "x-forwarded-for: 198.51.100.1, 192.0.2.7",
                "x-forwarded-host: hearth.example.org",
                "x-forwarded-prefix: /p/3000",
                "x-forwarded-proto: https",
            ]
        );
    }

    #[test]
    fn page_of_another_site_stays_one() {
        let mut headers = HeaderMap::new();
        headers.insert(header::ORIGIN, "https://evil.example".parse().unwrap());
        request(&mut headers, &outside(""), None);
        assert_eq!(headers[header::ORIGIN], "https://evil.example");
        assert!(!headers.contains_key(FORWARDED_PREFIX));
    }

    #[test]
    fn change_of_protocol_passes() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONNECTION, "keep-alive, Upgrade".parse().unwrap());
        headers.insert(header::UPGRADE, "websocket".parse().unwrap());
        let upgrade = upgrade_of(&headers);
        assert_eq!(upgrade.as_ref().unwrap(), "websocket");
        request(&mut headers, &outside(""), upgrade.as_ref());
        assert_eq!(
            (&headers[header::CONNECTION], &headers[header::UPGRADE]),
            (&"Upgrade".parse().unwrap(), &"websocket".parse().unwrap())
        );
        headers.remove(header::CONNECTION);
        assert_eq!(upgrade_of(&headers), None);
    }
}
