//! TLS to a daemon's port: our certificate, and its certificate as it is. Incus' own is signed by itself and names no address, so it
//! cannot be verified as a web server's is; its own client compares it, too.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::options::IncusTls;
use crate::DriverError;

/// Accepts one certificate, whatever name it has.
#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *end_entity == self.certificate {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What connections to ports are made with.
pub(super) fn config(tls: &IncusTls) -> Result<ClientConfig, DriverError> {
    let unreadable = |path: &Path, what: &str, error: &dyn std::fmt::Display| {
        DriverError::permanent(format!("{what} in {} cannot be used: {error}", path.display()))
    };
    let certificates = |path: &Path, what: &str| {
        let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        all.map_err(|error| unreadable(path, what, &error))
    };
    let ours = certificates(&tls.certificate, "the client certificate for Incus")?;
    let key = PrivateKeyDer::from_pem_file(&tls.key)
        .map_err(|error| unreadable(&tls.key, "the key of the client certificate for Incus", &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| DriverError::permanent(format!("TLS cannot be used: {error}")))?;
    let verifier: Arc<dyn ServerCertVerifier> = match &tls.server_certificate {
        Some(path) => {
            let mut all = certificates(path, "Incus' certificate")?;
            if all.is_empty() {
                return Err(unreadable(path, "Incus' certificate", &"it holds none"));
            }
            Arc::new(Pinned {
                certificate: all.swap_remove(0),
                provider,
            })
        }
        None => {
            let mut roots = RootCertStore::empty();
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| {
                    DriverError::permanent(format!(
                        "this machine trusts no authority ({error}): name Incus' certificate with --incus-server-cert"
                    ))
                })?
        }
    };
    let mut config = builder
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(ours, key)
        .map_err(|error| unreadable(&tls.certificate, "the client certificate for Incus", &error))?;
    // Streams to commands are WebSockets, which HTTP/2 of Incus does not carry.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// For a socket, which needs none.
pub(super) fn none() -> Result<ClientConfig, DriverError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| DriverError::permanent(format!("TLS cannot be used: {error}")))?;
    Ok(builder
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth())
}
