//! Options of `hearth serve` for several servers that share one PostgreSQL database.

use std::path::PathBuf;

use clap::Args;
use url::Url;

use crate::failure::Failure;

/// Where the others reach this one, and how they are trusted.
#[derive(Debug, Clone, Args)]
pub(super) struct ServersArgs {
    /// Where the other servers of the same PostgreSQL database reach this one, like `https://box1.example:7717` [default: the first port of
    /// --listen, if its address is one of this machine's]
    #[arg(long, value_name = "URL", value_parser = parse_url)]
    advertise: Option<String>,
    /// The authority of the other servers' certificates, PEM, where this machine does not know it
    #[arg(long, value_name = "FILE")]
    peer_ca: Option<PathBuf>,
}

impl ServersArgs {
    pub(super) fn advertise(&self) -> Option<String> {
        self.advertise.clone()
    }

    /// What the file holds.
    pub(super) fn peer_authority(&self) -> Result<Option<Vec<u8>>, Failure> {
        let Some(file) = &self.peer_ca else { return Ok(None) };
        let failed = |why: String| {
            Failure::usage(format!("--peer-ca: {}: {why}", file.display()))
                .hint("name the file with the certificate of the authority, PEM")
        };
        let pem = std::fs::read(file).map_err(|error| failed(error.to_string()))?;
        if !String::from_utf8_lossy(&pem).contains("-----BEGIN CERTIFICATE-----") {
            return Err(failed("it holds no certificate".to_owned()));
        }
        Ok(Some(pem))
    }
}

fn parse_url(text: &str) -> Result<String, String> {
    const RIGHT: &str = "write http:// or https://, the name or address of this machine, and the port";
    let url = Url::parse(text).map_err(|error| format!("{error}; {RIGHT}"))?;
    let is_bare = url.path() == "/" && url.query().is_none() && url.username().is_empty() && url.password().is_none();
    if !["http", "https"].contains(&url.scheme()) || url.host().is_none() || !is_bare {
        return Err(RIGHT.to_owned());
    }
    Ok(text.trim_end_matches('/').to_owned())
}
