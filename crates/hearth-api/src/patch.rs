//! How a PATCH body tells "absent" from "null", and how whole numbers are read. Used with `#[serde(deserialize_with)]`.

use serde::{Deserialize, Deserializer, de::Error as _};

/// A present field: `None` is left to `#[serde(default)]`, so that `null` reaches `T` and only a nullable `T` takes it.
pub(crate) fn present<'de, T, D>(from: D) -> Result<Option<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    T::deserialize(from).map(Some)
}

/// Largest whole number that every JSON reader holds exactly (2^53).
const EXACT: f64 = 9_007_199_254_740_992.0;

/// A present whole number; `5.0` is one, `5.5` is not. The bounds are checked later, so that the error can name them.
pub(crate) fn present_whole<'de, D>(from: D) -> Result<Option<i64>, D::Error>
where
    D: Deserializer<'de>,
{
    let number = serde_json::Number::deserialize(from)?;
    if let Some(whole) = number.as_i64() {
        return Ok(Some(whole));
    }
    match number.as_f64() {
        #[expect(clippy::cast_possible_truncation, reason = "within 2^53 and without a fraction, so exact")]
        Some(float) if float.fract() == 0.0 && float.abs() <= EXACT => Ok(Some(float as i64)),
        _ => Err(D::Error::custom(format!("expected a whole number, got {number}"))),
    }
}
