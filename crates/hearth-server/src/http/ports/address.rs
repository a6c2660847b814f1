//! Where a port of a VM is reached from outside: its path below the API, and its host name.

use axum::http::uri::Authority;
use axum::http::{HeaderMap, header};
use hearth_api::ids::InstanceId;
use url::Url;

use super::PortAccess;
use crate::http::BASE;

/// How ids of instances begin; no host name may hold an underscore.
const ID_PREFIX: &str = "wpi_";
/// The same in a host name.
const LABEL_PREFIX: &str = "wpi-";
/// Every system leads names below it to itself.
pub const LOCAL_DOMAIN: &str = "localhost";

/// What a proxy in front says of the request's scheme.
pub const FORWARDED_PROTO: &str = "x-forwarded-proto";

/// The path below which a port is reached, without a slash at its end.
pub fn path(id: &InstanceId, port: u16) -> String {
    format!("{BASE}/instances/{id}/ports/{port}")
}

/// The name of a port below a domain: one DNS label.
fn label(id: &InstanceId, port: u16) -> String {
    let id = id.as_str();
    match id.strip_prefix(ID_PREFIX) {
        Some(rest) => format!("{port}-{LABEL_PREFIX}{rest}"),
        None => format!("{port}-{id}"),
    }
}

/// The port that a host names, where it names one.
pub fn named(host: &str, domain: &str) -> Option<(u16, InstanceId)> {
    let host = host
        .rsplit_once(':')
        .map_or(host, |(host, _)| host)
        .to_ascii_lowercase();
    let label = host.strip_suffix(&domain.to_ascii_lowercase())?.strip_suffix('.')?;
    let (port, id) = label.split_once('-')?;
    let port = port.parse().ok().filter(|port| *port > 0)?;
    let id = match id.strip_prefix(LABEL_PREFIX) {
        Some(rest) => format!("{ID_PREFIX}{rest}"),
        None => id.to_owned(),
    };
    Some((port, InstanceId::try_from(id).ok()?))
}

/// Who the client believes to speak to.
pub fn outer_host(headers: &HeaderMap) -> Option<&str> {
    let host = headers.get(header::HOST)?.to_str().ok()?;
    host.parse::<Authority>().ok().map(|_| host)
}

/// `https` when a proxy in front says so.
pub fn outer_scheme(headers: &HeaderMap) -> &'static str {
    let said = headers.get(FORWARDED_PROTO).and_then(|value| value.to_str().ok());
    match said {
        Some(proto) if proto.eq_ignore_ascii_case("https") => "https",
        _ => "http",
    }
}

/// Where HTTP to this port goes, as the client of this request reaches us: by name where that works, else by path.
pub fn of(access: &PortAccess, headers: &HeaderMap, id: &InstanceId, port: u16) -> String {
    let by_path = format!("{}/", path(id, port));
    let Some(host) = outer_host(headers) else {
        return by_path;
    };
    let scheme = outer_scheme(headers);
    match access.domain.as_deref().filter(|domain| reaches(domain, host)) {
        Some(domain) => {
            let own_port = host.parse::<Authority>().ok().and_then(|host| host.port_u16());
            let own_port = own_port.map(|port| format!(":{port}")).unwrap_or_default();
            format!("{scheme}://{}.{domain}{own_port}/", label(id, port))
        }
        None => format!("{scheme}://{host}{by_path}"),
    }
}

/// Names below `localhost` lead to the client's own machine: they help only a client that is on ours.
fn reaches(domain: &str, host: &str) -> bool {
    if domain != LOCAL_DOMAIN {
        return true;
    }
    let url = Url::parse(&format!("http://{host}/")).ok();
    match url.as_ref().and_then(Url::host) {
        Some(url::Host::Domain(name)) => name == LOCAL_DOMAIN || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_and_port_has_a_label_that_leads_back() {
        for id in [InstanceId::generate(), "x-1_y".parse().unwrap()] {
            for port in [1, 3000, u16::MAX] {
                let label = label(&id, port);
                assert!(label.len() <= 63, "{label}");
                assert_eq!(
                    named(&format!("{label}.Example.org:8443"), "example.org"),
                    Some((port, id.clone()))
                );
            }
        }
        let label = label(&InstanceId::generate(), 80);
        assert!(
            label
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        );
    }

    #[test]
    fn other_hosts_name_no_port() {
        for host in [
            "example.org",
            "3000.example.org",
            "0-wpi-1.example.org",
            "70000-wpi-1.example.org",
            "3000-wpi-1.example.com",
            "3000-wpi-1.evilexample.org",
            "a.3000-wpi-1.example.org",
            "3000-.example.org",
            "[::1]:80",
            "",
        ] {
            assert_eq!(named(host, "example.org"), None, "{host}");
        }
    }

    #[test]
    fn names_below_localhost_are_for_clients_of_this_machine() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("key"), "key").unwrap();
        let links = crate::secrets::links::LinkKey::open(&folder.path().join("key")).unwrap();
        let id = InstanceId::example(1);
        let at = |domain: &str, host: &str, proto: &str| {
            let access = PortAccess {
                domain: Some(domain.to_owned()),
                links: links.clone(),
                visitors: super::super::VisitorLimit::default(),
            };
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            headers.insert(FORWARDED_PROTO, proto.parse().unwrap());
            of(&access, &headers, &id, 3000)
        };
        let name = label(&id, 3000);
        assert_eq!(
            at("localhost", "127.0.0.1:7717", "http"),
            format!("http://{name}.localhost:7717/")
        );
        assert_eq!(
            at("localhost", "[::1]:7717", "http"),
            format!("http://{name}.localhost:7717/")
        );
        let by_path = path(&id, 3000);
        assert_eq!(
            at("localhost", "hearth.example.org", "https"),
            format!("https://hearth.example.org{by_path}/")
        );
        assert_eq!(
            at("dev.example.org", "hearth.example.org", "https"),
            format!("https://{name}.dev.example.org/")
        );
    }
}
