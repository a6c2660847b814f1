//! The one place that connects for somebody who may not reach everything. It looks the name up itself, checks each address and
//! connects to that very address: a name that says one thing to the check and another to the connection gains nothing.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;

use super::location::{Location, Scheme};
use super::{CLOSED, Refusal, Sources};

/// How long one address may take to answer.
const CONNECT_PATIENCE: Duration = Duration::from_secs(20);

/// Why there is no connection.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum EgressError {
    /// It may not be.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It cannot be.
    #[error("{0}")]
    Failed(String),
}

/// What one fetch may connect to.
#[derive(Debug, Clone)]
pub(super) struct Egress {
    pub(super) sources: Sources,
    pub(super) tenant: String,
    /// What is fetched.
    pub(super) location: Location,
    /// A rule names it, so it may be anywhere.
    pub(super) is_listed: bool,
}

impl Egress {
    /// Connects, if the rules let it: to the place that is fetched, or to where that one leads on.
    pub(super) async fn connect(&self, scheme: Scheme, host: &str, port: u16) -> Result<TcpStream, EgressError> {
        let is_listed = self.is_open(scheme, host, port)?;
        let found = tokio::net::lookup_host((host, port)).await;
        let found: Vec<SocketAddr> = found
            .map_err(|error| EgressError::Failed(format!("the host `{host}` is not found: {error}")))?
            .collect();
        let own = hearth_drivers::host_addresses()
            .map_err(|error| EgressError::Failed(format!("this host's own addresses cannot be listed: {error}")))?;
        let mut refused = None;
        let mut failed = format!("the host `{host}` has no address");
        for address in found {
            let why = closed(address.ip(), |ip| own.contains(&ip)).filter(|_| !is_listed);
            if let Some(why) = why {
                // Not which address: what names the server's network knows is not everybody's to ask.
                tracing::info!(host, %address, tenant = self.tenant, "a fetch is refused: {why}");
                refused = Some(self.refuse(scheme, host, port, &format!("its name leads to an address {why}")));
                continue;
            }
            let connecting = TcpStream::connect(address);
            match tokio::time::timeout(CONNECT_PATIENCE, connecting).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => failed = format!("{address} (`{host}`) does not take the connection: {error}"),
                Err(_) => failed = format!("{address} (`{host}`) does not answer"),
            }
        }
        Err(refused.map_or(EgressError::Failed(failed), EgressError::Refused))
    }

    /// Whether a rule opens it wherever it is; refused when one closes it, or when it needs one.
    fn is_open(&self, scheme: Scheme, host: &str, port: u16) -> Result<bool, Refusal> {
        let here = &self.location;
        if (here.scheme, here.host.as_str(), here.port) == (scheme, host, port) {
            return Ok(self.is_listed);
        }
        let mut rules = self.sources.rules_of(&self.tenant);
        match rules.find(|rule| rule.is_about_all_of(scheme, host, port)) {
            Some(rule) if rule.allows() => Ok(true),
            Some(rule) => Err(Refusal::by_rule(rule, &self.tenant, &place(scheme, host, port), CLOSED)),
            None if scheme == Scheme::Http => Err(self.refuse(scheme, host, port, "plain http:// is not encrypted")),
            None => Ok(false),
        }
    }

    fn refuse(&self, scheme: Scheme, host: &str, port: u16, why: &str) -> Refusal {
        let place = place(scheme, host, port);
        Refusal::default_refusal(&self.tenant, &place, why, Some(place.trim_matches('`')))
    }
}

/// Why an address is closed to who may reach public ones only.
fn closed(ip: IpAddr, is_own: impl Fn(IpAddr) -> bool) -> Option<String> {
    let ip = ip.to_canonical();
    if let Some(net) = hearth_drivers::not_public(ip) {
        return Some(format!("that is not public ({net})"));
    }
    is_own(ip).then(|| "that is the server's own".to_owned())
}

/// What an address's text alone tells: a host that is an address, or the server by its usual name.
pub(super) fn check_text(location: &Location) -> Result<(), String> {
    if location.is_localhost() {
        return Err("that name is the server itself".to_owned());
    }
    let own = hearth_drivers::host_addresses().unwrap_or_default();
    let why = location.ip().and_then(|ip| closed(ip, |ip| own.contains(&ip)));
    why.map_or(Ok(()), |why| Err(format!("its host is an address {why}")))
}

/// What a rule would have to name to open this host.
pub(super) fn pattern(location: &Location) -> String {
    place(location.scheme, &location.host, location.port)
        .trim_matches('`')
        .to_owned()
}

fn place(scheme: Scheme, host: &str, port: u16) -> String {
    let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
    let port = if port == scheme.default_port() {
        String::new()
    } else {
        format!(":{port}")
    };
    format!("`{}://{open}{host}{close}{port}`", scheme.as_str())
}
