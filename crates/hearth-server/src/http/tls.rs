//! TLS: the certificate from files, which may change while the server runs, or from an authority ([`acme`]).

mod acme;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use axum_server::tls_rustls::RustlsConfig;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_util::sync::CancellationToken;

use crate::options::{TlsFiles, TlsSource};

/// How often the files are checked. Who renews a certificate does so days before it ends.
const CHECK: Duration = Duration::from_secs(10);
/// What is spoken inside: see `answer`.
const PROTOCOL: &[u8] = b"http/1.1";
/// Everybody can read the file.
const OTHERS_READ: u32 = 0o004;

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing, or is not what it should be.
    #[error("{what} {} cannot be used: {why}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        why: String,
    },
    /// The two do not belong together, or are of a kind that is not understood.
    #[error("the certificate {} and the key {} cannot be used together: {why}", certificate.display(), key.display())]
    Pair {
        certificate: PathBuf,
        key: PathBuf,
        why: String,
    },
    /// No certificate of an authority can be used here at all.
    #[error("TLS cannot be set up: {0}")]
    Acme(rustls::Error),
}

/// What the files looked like: changed when it differs.
type Seen = [Option<(SystemTime, u64)>; 2];

/// The server's certificate. Cheap to clone; connections that come after a change get the new one.
#[derive(Debug, Clone)]
pub struct Tls {
    config: RustlsConfig,
    source: Source,
}

/// What changes it.
#[derive(Debug, Clone)]
enum Source {
    Files(Files),
    /// Until it is watched.
    Acme(Arc<Mutex<Option<acme::Renewal>>>),
}

#[derive(Debug, Clone)]
struct Files {
    paths: TlsFiles,
    seen: Arc<Mutex<Seen>>,
}

impl TlsFiles {
    /// Whether a server can show this certificate: what is wrong otherwise.
    pub fn check(&self) -> Result<(), TlsError> {
        read(self).map(drop)
    }
}

impl Tls {
    /// Reads the files, or what an authority gave before: that is kept in the folder.
    pub fn open(source: &TlsSource, folder: &Path) -> Result<Self, TlsError> {
        let (config, source) = match source {
            TlsSource::Files(paths) => {
                let seen = Arc::new(Mutex::new(seen(paths)));
                let paths = paths.clone();
                (read(&paths)?, Source::Files(Files { paths, seen }))
            }
            TlsSource::Acme(settings) => {
                let (config, renewal) = acme::open(settings, folder)?;
                (config, Source::Acme(Arc::new(Mutex::new(Some(renewal)))))
            }
        };
        let config = RustlsConfig::from_config(Arc::new(config));
        Ok(Self { config, source })
    }

    /// Reads the files again; with a fault in them the old certificate stays.
    pub fn reload(&self) -> Result<(), TlsError> {
        match &self.source {
            Source::Files(files) => files.reload(&self.config),
            Source::Acme(_) => Ok(()),
        }
    }

    /// Reads the files again whenever they have changed, or gets and renews the authority's, until `stop`.
    pub async fn watch(self, stop: CancellationToken) {
        match self.source {
            Source::Files(files) => files.watch(&self.config, stop).await,
            Source::Acme(renewal) => {
                let renewal = renewal.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(renewal) = renewal {
                    acme::renew(renewal, stop).await;
                }
            }
        }
    }

    pub(super) fn config(&self) -> RustlsConfig {
        self.config.clone()
    }
}

impl Files {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reload(&self, config: &RustlsConfig) -> Result<(), TlsError> {
        *self.seen() = seen(&self.paths);
        config.reload_from_config(Arc::new(read(&self.paths)?));
        tracing::info!(certificate = %self.paths.certificate.display(), "the certificate was read again");
        Ok(())
    }

    async fn watch(self, config: &RustlsConfig, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(CHECK) => {}
            }
            let changed = *self.seen() != seen(&self.paths);
            if changed && let Err(error) = self.reload(config) {
                tracing::warn!(%error, "the certificate that was in use stays; the next change of the files is tried");
            }
        }
    }
}

fn seen(files: &TlsFiles) -> Seen {
    [&files.certificate, &files.key].map(|path| {
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.modified().ok()?, meta.len()))
    })
}

fn read(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let file = |what, path: &Path| {
        let path = path.to_owned();
        move |why: String| TlsError::File { what, path, why }
    };
    let pair = |error: rustls::Error| TlsError::Pair {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        why: error.to_string(),
    };
    let certificate = file("the certificate", &files.certificate);
    let pem = std::fs::read(&files.certificate).map_err(|error| certificate.clone()(error.to_string()))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.map_err(|_| certificate.clone()("it is not PEM".to_owned()))?;
    if chain.is_empty() {
        return Err(certificate("it holds no certificate in PEM".to_owned()));
    }
    let key = file("the private key", &files.key);
    let pem = std::fs::read(&files.key).map_err(|error| key.clone()(error.to_string()))?;
    // Nothing of what is in it is repeated.
    let private = PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|_| key("it holds no private key in PEM without a passphrase".to_owned()))?;
    if std::fs::metadata(&files.key).is_ok_and(|meta| meta.permissions().mode() & OTHERS_READ != 0) {
        tracing::warn!(key = %files.key.display(), "every user of this machine can read the private key: `chmod o-r` it");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(pair)?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(pair)?;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(config)
}
