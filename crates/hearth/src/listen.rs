//! The address that a server listens on, as a person may write it: whole, as a port alone, or as a name with a port.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs as _};
use std::str::FromStr;

/// The port of a Hearth server unless another one is named.
pub(crate) const USUAL_PORT: u16 = 7717;

/// `--listen`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ListenArg(pub(crate) SocketAddr);

impl FromStr for ListenArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Ok(address) = text.parse() {
            return Ok(Self(address));
        }
        // A port alone means this machine alone: who wants to be reached from elsewhere says so.
        if let Ok(port) = text.parse() {
            return Ok(Self(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)));
        }
        if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
            return Ok(Self(SocketAddr::new(ip, USUAL_PORT)));
        }
        let wanted = "write a port like 7717 (this machine alone), or an address like 127.0.0.1:7717 or 0.0.0.0:7717 (every address \
                      of this machine)";
        match text.rsplit_once(':') {
            Some((name, port)) if !name.is_empty() && port.parse::<u16>().is_ok() => {
                let mut found = text
                    .to_socket_addrs()
                    .map_err(|error| format!("the name {name} has no address here ({error}); {wanted}"))?;
                found
                    .next()
                    .map(Self)
                    .ok_or_else(|| format!("the name {name} has no address here; {wanted}"))
            }
            _ => Err(wanted.to_owned()),
        }
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
        ] {
            assert_eq!(text.parse(), Ok(ListenArg(address.parse().unwrap())), "{text}");
        }
        let local: ListenArg = "localhost:7912".parse().unwrap();
        assert!(local.0.ip().is_loopback() && local.0.port() == 7912);
        for text in ["", "70000", ":7717", "http://127.0.0.1:7717", "nowhere"] {
            let fault = text.parse::<ListenArg>().unwrap_err();
            assert!(fault.contains("127.0.0.1:7717"), "{text}: {fault}");
        }
    }
}
