//! What an instance is made for.

use std::fmt;
use std::str::FromStr;

/// What an instance is made for. Always exactly one of these: a test boot never serves a claim, and a renewal serves none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// It belongs to the pool, for the next claim.
    Pool,
    /// A person tests the set-up and looks inside; no claim gets it.
    Test {
        /// Stages that are frozen already need not run.
        use_cache: bool,
    },
    /// It is made for one waiting claim; no other claim gets it.
    Claim,
    /// It renews the template; no claim gets it.
    Renewal,
}

/// A text that names no [`Purpose`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no purpose of an instance")]
pub struct UnknownPurpose(String);

impl Purpose {
    pub const ALL: [Self; 5] = [
        Self::Pool,
        Self::Test { use_cache: true },
        Self::Test { use_cache: false },
        Self::Claim,
        Self::Renewal,
    ];

    /// Its name in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pool => "pool",
            Self::Test { use_cache: true } => "test",
            Self::Test { use_cache: false } => "test-uncached",
            Self::Claim => "claim",
            Self::Renewal => "renewal",
        }
    }

    /// Whether a person tests the set-up with it.
    #[must_use]
    pub fn is_test(self) -> bool {
        matches!(self, Self::Test { .. })
    }

    /// Whether a claim may get it: the pool's, or a waiting claim's own.
    #[must_use]
    pub fn serves_claims(self) -> bool {
        matches!(self, Self::Pool | Self::Claim)
    }

    /// Whether stages that are frozen already need not run.
    #[must_use]
    pub fn uses_cache(self) -> bool {
        self != Self::Test { use_cache: false }
    }

    /// What it is for when the claim that waited for it has gone away.
    #[must_use]
    pub fn without_claim(self) -> Self {
        match self {
            Self::Claim => Self::Pool,
            other => other,
        }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Purpose {
    type Err = UnknownPurpose;

    fn from_str(text: &str) -> Result<Self, UnknownPurpose> {
        let found = Self::ALL.into_iter().find(|purpose| purpose.as_str() == text);
        found.ok_or_else(|| UnknownPurpose(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_database_are_pinned() {
        let names = Purpose::ALL.map(Purpose::as_str);
        assert_eq!(names, ["pool", "test", "test-uncached", "claim", "renewal"]);
        for purpose in Purpose::ALL {
            assert_eq!(purpose.as_str().parse(), Ok(purpose));
        }
        assert!("build".parse::<Purpose>().is_err());
    }
}
