//! The certificate from an authority that speaks ACME (RFC 8555): it is asked for when the server starts, and again well before it ends. The
//! authority checks the names by a TLS handshake of its own at port 443 (TLS-ALPN-01, RFC 8737), which is answered where the server listens.

use std::io;
use std::path::Path;
use std::sync::Arc;

use futures::StreamExt as _;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_acme::caches::DirCache;
use rustls_acme::{AcmeConfig, AcmeState, EventOk};
use tokio_util::sync::CancellationToken;

use super::{PROTOCOL, TlsError};
use crate::options::AcmeSettings;

/// What the authority's handshake asks for.
const CHALLENGE_PROTOCOL: &[u8] = b"acme-tls/1";

/// What works on the certificate.
pub(super) type Renewal = AcmeState<io::Error>;

/// The certificate that was kept in the folder, or none until there is one; and what gets it.
pub(super) fn open(settings: &AcmeSettings, folder: &Path) -> Result<(ServerConfig, Renewal), TlsError> {
    let client = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Acme)?
        .with_root_certificates(trusted(settings)?)
        .with_no_client_auth();
    let config = AcmeConfig::new_with_client_config(&settings.domains, Arc::new(client))
        .contact(settings.contact.iter().map(|address| format!("mailto:{address}")))
        .cache(DirCache::new(folder.to_owned()));
    let state = match &settings.directory {
        Some(directory) => config.directory(directory),
        None => config.directory_lets_encrypt(true),
    }
    .state();
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Acme)?
        .with_no_client_auth()
        .with_cert_resolver(state.resolver());
    config.alpn_protocols = vec![PROTOCOL.to_vec(), CHALLENGE_PROTOCOL.to_vec()];
    Ok((config, state))
}

/// Whom the authority's own address is believed: those that this machine trusts, and the one that is named.
fn trusted(settings: &AcmeSettings) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = &settings.authority {
        let fault = |why: String| TlsError::File {
            what: "the certificate of ACME's authority",
            path: path.clone(),
            why,
        };
        let pem = std::fs::read(path).map_err(|error| fault(error.to_string()))?;
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let all = all.map_err(|_| fault("it is not PEM".to_owned()))?;
        if roots.add_parsable_certificates(all).0 == 0 {
            return Err(fault("it holds no certificate in PEM".to_owned()));
        }
    }
    Ok(roots)
}

fn message(event: &EventOk) -> &'static str {
    match event {
        EventOk::DeployedCachedCert => "the certificate that was kept is in use",
        EventOk::DeployedNewCert => "a new certificate is in use",
        EventOk::CertCacheStore => "the new certificate is kept",
        EventOk::AccountCacheStore => "the account at the authority is kept",
    }
}

/// Gets and renews it until `stop`. What fails is tried again later; the certificate that was in use stays.
pub(super) async fn renew(mut state: Renewal, stop: CancellationToken) {
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = state.next() => event,
        };
        match event {
            Some(Ok(event)) => tracing::info!("ACME: {}", message(&event)),
            Some(Err(error)) => {
                tracing::warn!(%error, "the certificate could not be got or renewed by ACME; it is tried again later");
            }
            None => return,
        }
    }
}
