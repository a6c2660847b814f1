//! The names of checkpoints.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Fewest and most digits of a key: from 64 bits up to a SHA-512.
const KEY_DIGITS: std::ops::RangeInclusive<usize> = 16..=128;

/// Names a checkpoint: a digest over everything that decides what it holds, in small hexadecimal digits. Safe as a file name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CheckpointKey(String);

/// Why a text cannot be a [`CheckpointKey`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a checkpoint's key is 16 to 128 digits of 0-9 and a-f")]
pub struct InvalidKey;

impl CheckpointKey {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CheckpointKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for CheckpointKey {
    type Error = InvalidKey;

    fn try_from(text: String) -> Result<Self, InvalidKey> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if KEY_DIGITS.contains(&text.len()) && text.bytes().all(is_digit) {
            Ok(Self(text))
        } else {
            Err(InvalidKey)
        }
    }
}

impl std::str::FromStr for CheckpointKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        Self::try_from(text.to_owned())
    }
}

impl From<CheckpointKey> for String {
    fn from(key: CheckpointKey) -> Self {
        key.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_digests_are_keys() {
        assert!("0123456789abcdef".parse::<CheckpointKey>().is_ok());
        for bad in [
            "",
            "0123456789abcde",
            "0123456789ABCDEF",
            "../../../../etc/",
            "0123456789abcdeg",
        ] {
            assert_eq!(bad.parse::<CheckpointKey>(), Err(InvalidKey), "{bad}");
        }
        assert!("0".repeat(129).parse::<CheckpointKey>().is_err());
    }
}
