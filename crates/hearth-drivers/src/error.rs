//! Short ways to make a [`DriverError`]. Which kind an error is gets decided where it happens; nothing here guesses.

use std::error::Error;
use std::path::PathBuf;

use hearth_host::program;

use crate::DriverError;

type Cause = Box<dyn Error + Send + Sync>;

impl DriverError {
    /// It did not happen and may work later.
    pub fn retry(reason: impl Into<String>) -> Self {
        Self::Retry {
            reason: reason.into(),
            source: None,
        }
    }

    /// It did not happen and will not, however often it is asked.
    pub fn permanent(reason: impl Into<String>) -> Self {
        Self::Permanent {
            reason: reason.into(),
            source: None,
        }
    }

    /// It is not known whether it happened.
    pub fn unknown(reason: impl Into<String>) -> Self {
        Self::Unknown {
            reason: reason.into(),
            source: None,
        }
    }

    /// The same error with what lies beneath.
    #[must_use]
    pub fn caused_by(mut self, cause: impl Into<Cause>) -> Self {
        match &mut self {
            Self::Retry { source, .. } | Self::Permanent { source, .. } | Self::Unknown { source, .. } => {
                *source = Some(cause.into());
            }
        }
        self
    }

    /// The same error with another reason.
    #[must_use]
    pub(crate) fn with_reason(mut self, change: impl FnOnce(&str) -> String) -> Self {
        match &mut self {
            Self::Retry { reason, .. } | Self::Permanent { reason, .. } | Self::Unknown { reason, .. } => {
                *reason = change(reason);
            }
        }
        self
    }
}

/// A failed file operation of the driver itself: almost always a full or read-only disk, so worth trying again.
pub(crate) fn io(what: impl std::fmt::Display, error: std::io::Error) -> DriverError {
    DriverError::retry(format!("{what}: {error}")).caused_by(error)
}

/// Whether a disk is full; QEMU says it in words.
pub(crate) fn is_full_disk(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
    ) || error.to_string().contains("No space left")
}

/// Where a program is, or an error that says which package to install.
pub(crate) fn need(name: &str, package: &str) -> Result<PathBuf, DriverError> {
    program::find(name).ok_or_else(|| {
        DriverError::permanent(format!(
            "{name} is not installed: run `apt-get install {package}` (as root)"
        ))
    })
}
