//! A secret that only a passphrase opens, for what leaves the machine: the key is derived by Argon2id.

use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::aead::{Aead, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use rand::RngExt as _;
use serde::{Deserialize, Serialize};

/// Memory that one try takes, KiB: what makes trying costly.
const MEMORY_KIB: u32 = 64 * 1024;
/// How often it is gone through.
const PASSES: u32 = 3;
/// What a file may ask for: it is not trusted before it is opened.
const MOST_MEMORY_KIB: u32 = 1024 * 1024;
const MOST_PASSES: u32 = 16;
const SALT_BYTES: usize = 16;
const NONCE_BYTES: usize = 24;
const KEY_BYTES: usize = 32;
/// What the sealed text is.
const CONTEXT: &[u8] = b"hearth: secrets of a backup, version 1";

/// Why it cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PassphraseError {
    /// Another passphrase, or a changed text.
    #[error("the passphrase is not the one that the backup was made with, or the backup is damaged")]
    Wrong,
    /// It was not made by this program.
    #[error("the backup's sealed key is damaged")]
    Damaged,
}

/// A sealed text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SealedByPassphrase {
    memory_kib: u32,
    passes: u32,
    /// Hexadecimal, as the others.
    salt: String,
    nonce: String,
    sealed: String,
}

impl SealedByPassphrase {
    /// Seals it. Takes a part of a second, on purpose.
    pub fn seal(passphrase: &str, secret: &[u8]) -> Result<Self, PassphraseError> {
        let salt: [u8; SALT_BYTES] = rand::rng().random();
        let nonce: [u8; NONCE_BYTES] = rand::rng().random();
        let cipher = cipher(passphrase, &salt, MEMORY_KIB, PASSES)?;
        let payload = Payload {
            msg: secret,
            aad: CONTEXT,
        };
        let sealed = cipher
            .encrypt(&XNonce::from(nonce), payload)
            .map_err(|_| PassphraseError::Damaged)?;
        Ok(Self {
            memory_kib: MEMORY_KIB,
            passes: PASSES,
            salt: hex::encode(salt),
            nonce: hex::encode(nonce),
            sealed: hex::encode(sealed),
        })
    }

    /// Opens it.
    pub fn open(&self, passphrase: &str) -> Result<Vec<u8>, PassphraseError> {
        let bytes = |text: &str| hex::decode(text).map_err(|_| PassphraseError::Damaged);
        let (salt, nonce, sealed) = (bytes(&self.salt)?, bytes(&self.nonce)?, bytes(&self.sealed)?);
        let nonce: [u8; NONCE_BYTES] = nonce.try_into().map_err(|_| PassphraseError::Damaged)?;
        if self.memory_kib > MOST_MEMORY_KIB || self.passes > MOST_PASSES {
            return Err(PassphraseError::Damaged);
        }
        let payload = Payload {
            msg: sealed.as_slice(),
            aad: CONTEXT,
        };
        cipher(passphrase, &salt, self.memory_kib, self.passes)?
            .decrypt(&XNonce::from(nonce), payload)
            .map_err(|_| PassphraseError::Wrong)
    }
}

fn cipher(passphrase: &str, salt: &[u8], memory_kib: u32, passes: u32) -> Result<XChaCha20Poly1305, PassphraseError> {
    let params = Params::new(memory_kib, passes, 1, Some(KEY_BYTES)).map_err(|_| PassphraseError::Damaged)?;
    let mut key = [0; KEY_BYTES];
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.as_bytes(), salt, &mut key)
        .map_err(|_| PassphraseError::Damaged)?;
    XChaCha20Poly1305::new_from_slice(&key).map_err(|_| PassphraseError::Damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_opens_with_its_passphrase_and_no_other() {
        let sealed = SealedByPassphrase::seal("correct horse", b"geheim").unwrap();
        assert_eq!(sealed.open("correct horse").unwrap(), b"geheim");
        assert_eq!(sealed.open("wrong horse"), Err(PassphraseError::Wrong));
        let changed = SealedByPassphrase {
            passes: 2,
            ..sealed.clone()
        };
        assert_eq!(changed.open("correct horse"), Err(PassphraseError::Wrong));
        for hostile in [
            SealedByPassphrase {
                memory_kib: u32::MAX,
                ..sealed.clone()
            },
            SealedByPassphrase {
                passes: u32::MAX,
                ..sealed.clone()
            },
            SealedByPassphrase {
                passes: 0,
                ..sealed.clone()
            },
            SealedByPassphrase {
                salt: String::new(),
                ..sealed.clone()
            },
            SealedByPassphrase {
                nonce: "zz".to_owned(),
                ..sealed
            },
        ] {
            assert_eq!(hostile.open("correct horse"), Err(PassphraseError::Damaged));
        }
    }
}
