//! Options of `hearth serve` for its certificate.

use std::path::PathBuf;

use clap::Args;
use hearth_server::{AcmeSettings, TlsFiles, TlsSource};

use super::serve::parse_domain;

/// From files, or from an authority.
#[derive(Debug, Clone, Args)]
pub(super) struct TlsArgs {
    /// The certificate that ports are served with, PEM: its own first, then those up to the authority's. Read again when it changes
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Get the certificate for this name of the server by ACME and renew it, like `hearth.example.com`; may be repeated. The authority
    /// connects to port 443 of the name, which must lead to an address that is listened at
    #[arg(long = "acme-domain", value_name = "DOMAIN", value_parser = parse_domain, conflicts_with = "tls_cert")]
    acme_domains: Vec<String>,
    /// The mail address that the authority writes to when something is wrong, like `ops@example.com`
    #[arg(long, value_name = "ADDRESS", requires = "acme_domains")]
    acme_contact: Option<String>,
    /// The directory of another authority than Let's Encrypt, like `https://ca.corp.example/acme/acme/directory`
    #[arg(long, value_name = "URL", value_parser = parse_directory, requires = "acme_domains")]
    acme_directory: Option<String>,
    /// That authority's own certificate, PEM, where this machine does not know it
    #[arg(long, value_name = "FILE", requires = "acme_directory")]
    acme_ca: Option<PathBuf>,
}

impl TlsArgs {
    /// Where the certificate comes from, if there is one.
    pub(super) fn source(&self) -> Option<TlsSource> {
        if let (Some(certificate), Some(key)) = (self.tls_cert.clone(), self.tls_key.clone()) {
            return Some(TlsSource::Files(TlsFiles { certificate, key }));
        }
        (!self.acme_domains.is_empty()).then(|| {
            TlsSource::Acme(AcmeSettings {
                domains: self.acme_domains.clone(),
                contact: self.acme_contact.clone(),
                directory: self.acme_directory.clone(),
                authority: self.acme_ca.clone(),
            })
        })
    }
}

/// What goes there is signed, and what comes back decides who can act as this server.
fn parse_directory(text: &str) -> Result<String, String> {
    if text.starts_with("https://") {
        Ok(text.to_owned())
    } else {
        Err("it must begin with https://".to_owned())
    }
}
