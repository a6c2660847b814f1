//! Where a server listens, and where clients and people find it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use hearth_server::{Address, Listen};

use super::{ServeArgs, service};
use crate::connect;
use crate::failure::Failure;
use crate::listen::ListenArg;
use crate::local::{self, LocalServer, Registration};

/// The file in the data folder that holds the first token.
const TOKEN_FILE: &str = "admin-token";

/// All places to listen at: those of the service manager, those that are named, or else the usual one.
pub(super) fn listen(args: &ServeArgs, usual: Vec<Listen>) -> Result<Vec<Listen>, Failure> {
    let mut all = service::open_sockets()?;
    all.extend(args.listen.iter().map(|ListenArg(listen)| listen.clone()));
    if all.is_empty() {
        all = usual;
    }
    // A certificate holds the name that others know the server by: clients on this machine take another way.
    let only_ports = all.iter().all(|listen| matches!(listen, Listen::Tcp(_)));
    if args.tls.source().is_some() && only_ports {
        match local::private_socket() {
            Ok(path) => all.push(Listen::Unix(path)),
            Err(error) => tracing::warn!(%error, "there is no socket for clients on this machine"),
        }
    }
    Ok(all)
}

/// As a client writes it.
pub(super) fn url(address: &Address, has_tls: bool) -> String {
    match address {
        Address::Tcp(port) if has_tls => format!("https://{}", reachable(*port)),
        Address::Tcp(port) => format!("http://{}", reachable(*port)),
        Address::Unix(_) => address.to_string(),
    }
}

/// The address that clients on this machine use: one where no certificate is in their way.
pub(super) fn local_url(addresses: &[Address], has_tls: bool) -> Option<String> {
    let fits = |address: &&Address| !has_tls || address.tcp().is_none();
    addresses.iter().find(fits).map(|address| url(address, has_tls))
}

/// The next steps for a person.
pub(super) fn say_where(address: &Address, url: &str, data_dir: &Path) {
    let token = data_dir.join(TOKEN_FILE);
    let Address::Tcp(port) = address else {
        tracing::info!(
            "clients on this machine reach it at {url}; the first admin token is in {}",
            token.display()
        );
        return;
    };
    tracing::info!(
        "the API is at {url}/api/v1, its description at {url}/docs; the first admin token is in {}",
        token.display()
    );
    if !port.ip().is_loopback() && url.starts_with("http://") {
        tracing::warn!(
            "{port} can be reached from other machines, and the server speaks plain HTTP: tokens and variables can be read on the \
             way. Give it a certificate (--tls-cert and --tls-key, or --acme-domain), or put a proxy with TLS in front and listen on 127.0.0.1"
        );
    }
}

/// Tells local clients where we are. A server works without it, so a fault is but a warning.
pub(super) fn register(url: String, data_dir: &Path) -> Option<Registration> {
    let server = LocalServer {
        url,
        token_file: connect::absolute(&data_dir.join(TOKEN_FILE)),
        pid: std::process::id(),
        data_dir: connect::absolute(data_dir),
    };
    match Registration::create(&server) {
        Ok(registration) => Some(registration),
        Err(error) => {
            tracing::warn!(%error, "clients on this machine will not find the server by themselves");
            None
        }
    }
}

/// A server that listens everywhere is reached over the loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_listens_everywhere_is_found_on_the_loopback() {
        assert_eq!(reachable("0.0.0.0:1".parse().unwrap()).to_string(), "127.0.0.1:1");
        assert_eq!(reachable("[::]:1".parse().unwrap()).to_string(), "[::1]:1");
        assert_eq!(reachable("10.0.0.5:1".parse().unwrap()).to_string(), "10.0.0.5:1");
    }
}
