//! Where the certificate comes from that ports are listened at with.

use std::path::PathBuf;

/// From files that another tool renews, or from an authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsSource {
    /// From files.
    Files(TlsFiles),
    /// From an authority that speaks ACME.
    Acme(AcmeSettings),
}

/// The files of a certificate, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, and those between it and the authority's.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// An authority, and what it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcmeSettings {
    /// The names of this server, which lead to it from where the authority is.
    pub domains: Vec<String>,
    /// The mail address that the authority writes to when something is wrong.
    pub contact: Option<String>,
    /// The authority's directory; `None`: Let's Encrypt.
    pub directory: Option<String>,
    /// The authority's own certificate, PEM, where this machine does not know it.
    pub authority: Option<PathBuf>,
}
