//! Sealing: what the store asks of the holder of the key, so that no secret is in the database in plain.

use std::fmt::Debug;

/// Why a value could not be sealed or opened. Never says the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// A stored value does not open with this key.
    #[error(
        "a stored secret does not open with this installation's key: restore secret.key, or set the variable or git credential again"
    )]
    WrongKey,
    /// A value is too long to be sealed.
    #[error("a secret is too long to be encrypted")]
    TooLong,
}

/// Seals values before they are written and opens them when they are read.
pub trait Seal: Debug + Send + Sync {
    /// The sealed value; `context` says what it belongs to, so that a value moved to another row does not open.
    fn seal(&self, context: &str, value: &str) -> Result<Vec<u8>, SealError>;

    /// The value again.
    fn open_value(&self, context: &str, sealed: &[u8]) -> Result<String, SealError>;
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Seals nothing: for tests in which no variable is written.
    #[derive(Debug)]
    pub(crate) struct NoVariables;

    impl Seal for NoVariables {
        fn seal(&self, _: &str, _: &str) -> Result<Vec<u8>, SealError> {
            Err(SealError::TooLong)
        }

        fn open_value(&self, _: &str, _: &[u8]) -> Result<String, SealError> {
            Err(SealError::WrongKey)
        }
    }
}
