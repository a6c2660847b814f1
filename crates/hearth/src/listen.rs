//! The address that a server listens on, as a person may write it: whole, as a port alone, as a name with a port, or as the path of
//! a unix socket.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs as _};
use std::path::Path;
use std::str::FromStr;

use hearth_server::{Listen, UNIX};

use crate::connect;

/// The port of a Hearth server unless another one is named.
pub(crate) const USUAL_PORT: u16 = 7717;
/// Longest path of a unix socket, by the system.
const LONGEST_PATH: usize = 107;

/// `--listen`.
#[derive(Debug, Clone)]
pub(crate) struct ListenArg(pub(crate) Listen);

/// An address that is no socket's path.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TcpArg(pub(crate) SocketAddr);

impl FromStr for TcpArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        port(text.trim()).map(Self)
    }
}

impl FromStr for ListenArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        match text.strip_prefix(UNIX) {
            Some(path) => socket(path),
            None => port(text).map(Listen::Tcp),
        }
        .map(Self)
    }
}

fn socket(path: &str) -> Result<Listen, String> {
    if path.is_empty() || path.ends_with('/') {
        return Err("write the socket's path behind unix:, like unix:/run/hearth/hearth.sock".to_owned());
    }
    // Not resolved: there may be an old socket.
    let path = std::path::absolute(Path::new(path)).unwrap_or_else(|_| connect::absolute(Path::new(path)));
    if path.as_os_str().len() > LONGEST_PATH {
        return Err(format!(
            "the path of a unix socket has at most {LONGEST_PATH} bytes: choose a shorter one"
        ));
    }
    Ok(Listen::Unix(path))
}

fn port(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    // A port alone means this machine alone: who wants to be reached from elsewhere says so.
    if let Ok(port) = text.parse() {
        return Ok(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
    }
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, USUAL_PORT));
    }
    let wanted = "write a port like 7717 (this machine alone), an address like 127.0.0.1:7717 or 0.0.0.0:7717 (every address of this \
                  machine), or unix:PATH";
    match text.rsplit_once(':') {
        Some((name, port)) if !name.is_empty() && port.parse::<u16>().is_ok() => {
            let mut found = text
                .to_socket_addrs()
                .map_err(|error| format!("the name {name} has no address here ({error}); {wanted}"))?;
            found
                .next()
                .ok_or_else(|| format!("the name {name} has no address here; {wanted}"))
        }
        _ => Err(wanted.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_address_and_name_are_understood() {
        for (text, address) in [
            ("7912", "127.0.0.1:7912"),
            ("0", "127.0.0.1:0"),
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("0.0.0.0", "0.0.0.0:7717"),
            ("[::1]:80", "[::1]:80"),
            ("::1", "[::1]:7717"),
            ("unix:/run/hearth/hearth.sock", "unix:/run/hearth/hearth.sock"),
        ] {
            let listen: ListenArg = text.parse().unwrap();
            assert_eq!(listen.0.to_string(), address, "{text}");
        }
        let local: ListenArg = "localhost:7912".parse().unwrap();
        assert!(matches!(local.0, Listen::Tcp(address) if address.ip().is_loopback() && address.port() == 7912));
        for text in ["", "70000", ":7717", "http://127.0.0.1:7717", "nowhere"] {
            let fault = text.parse::<ListenArg>().unwrap_err();
            assert!(fault.contains("127.0.0.1:7717"), "{text}: {fault}");
        }
        let long = format!("unix:/{}", "a".repeat(200));
        for text in ["unix:", "unix:/run/", &long] {
            assert!(text.parse::<ListenArg>().unwrap_err().contains("socket"), "{text}");
        }
    }
}
