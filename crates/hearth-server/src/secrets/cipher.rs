//! Sealed secrets: one key per installation in a file that only its owner reads, XChaCha20-Poly1305 for each value.

use std::fmt;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hearth_store::{Seal, SealError};
use rand::RngExt as _;

/// Bytes of the key.
const KEY_BYTES: usize = 32;
/// Bytes of a nonce; random ones of this length never repeat in practice.
const NONCE_BYTES: usize = 24;

/// What can go wrong with the key.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The key file cannot be read or made.
    #[error("the key file {path} cannot be used: {source}")]
    KeyFile {
        /// Where it is.
        path: PathBuf,
        source: std::io::Error,
    },
    /// The key file has the wrong length.
    #[error("the key file {path} is damaged: restore it from a backup, or delete the data folder and begin again")]
    KeyDamaged {
        /// Where it is.
        path: PathBuf,
    },
}

/// Seals and opens values.
pub struct Cipher(XChaCha20Poly1305);

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher")
    }
}

impl Cipher {
    /// Reads the key file, or makes it (mode 0600) when there is none.
    pub fn open(path: &Path) -> Result<Self, SecretError> {
        let fail = |source| SecretError::KeyFile {
            path: path.to_owned(),
            source,
        };
        let key = match std::fs::read(path) {
            Ok(key) => key,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let key: [u8; KEY_BYTES] = rand::rng().random();
                write_private(path, &key).map_err(fail)?;
                key.to_vec()
            }
            Err(error) => return Err(fail(error)),
        };
        let cipher =
            XChaCha20Poly1305::new_from_slice(&key).map_err(|_| SecretError::KeyDamaged { path: path.to_owned() })?;
        Ok(Self(cipher))
    }
}

impl Seal for Cipher {
    /// Nonce and ciphertext.
    fn seal(&self, context: &str, value: &str) -> Result<Vec<u8>, SealError> {
        let nonce: [u8; NONCE_BYTES] = rand::rng().random();
        let payload = Payload {
            msg: value.as_bytes(),
            aad: context.as_bytes(),
        };
        let sealed = self
            .0
            .encrypt(&XNonce::from(nonce), payload)
            .map_err(|_| SealError::TooLong)?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    fn open_value(&self, context: &str, sealed: &[u8]) -> Result<String, SealError> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or(SealError::WrongKey)?;
        let payload = Payload {
            msg: sealed,
            aad: context.as_bytes(),
        };
        let value = self
            .0
            .decrypt(&XNonce::from(*nonce), payload)
            .map_err(|_| SealError::WrongKey)?;
        String::from_utf8(value).map_err(|_| SealError::WrongKey)
    }
}

/// Writes a file that only its owner can read, whole or not at all.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_opens_only_in_its_own_context_and_with_its_own_key() {
        let folder = tempfile::tempdir().unwrap();
        let cipher = Cipher::open(&folder.path().join("key")).unwrap();
        let sealed = cipher.seal("a", "geheim").unwrap();
        assert!(!sealed.windows(6).any(|w| w == b"geheim"));
        assert_eq!(
            Cipher::open(&folder.path().join("key"))
                .unwrap()
                .open_value("a", &sealed)
                .unwrap(),
            "geheim"
        );
        assert!(cipher.open_value("b", &sealed).is_err());
        let other = Cipher::open(&folder.path().join("other")).unwrap();
        assert!(other.open_value("a", &sealed).is_err());
        assert!(cipher.open_value("a", &sealed[..10]).is_err());
    }
}
