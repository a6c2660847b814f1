//! Timestamps on the wire: RFC 3339, UTC, always three digits of milliseconds. For `#[serde(with = "time")]`.

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serializer};

/// The text of a timestamp on the wire.
#[must_use]
pub fn format(at: Timestamp) -> String {
    format!("{at:.3}")
}

pub(crate) fn serialize<S: Serializer>(at: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&format(*at))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
    Timestamp::deserialize(from)
}

/// The same for a nullable timestamp.
pub(crate) mod nullable {
    use super::{Deserialize, Deserializer, Serializer, Timestamp, format};

    pub(crate) fn serialize<S: Serializer>(at: &Option<Timestamp>, to: S) -> Result<S::Ok, S::Error> {
        match at {
            Some(at) => to.serialize_some(&format(*at)),
            None => to.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Timestamp>, D::Error> {
        Option::<Timestamp>::deserialize(from)
    }
}
