//! How a PATCH body tells "absent" from "null", and how whole numbers are read. Used with `#[serde(deserialize_with)]`.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A JSON object. Derived readers also take a list of the fields' values for a struct; a client that sends one has made a
/// mistake and is told.
#[derive(Debug)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct OnlyMaps<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for OnlyMaps<T> {
            type Value = T;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }
        from.deserialize_map(OnlyMaps(PhantomData)).map(Self)
    }
}

fn bare<T>(objects: Vec<Object<T>>) -> Vec<T> {
    objects.into_iter().map(|object| object.0).collect()
}

/// A list of objects.
pub(crate) fn objects<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Vec::deserialize(from).map(bare)
}

/// A list of objects or `null`.
pub(crate) fn objects_or_null<'de, T, D>(from: D) -> Result<Option<Vec<T>>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    Option::deserialize(from).map(|objects| objects.map(bare))
}

/// A present list of objects.
pub(crate) fn present_objects<'de, T, D>(from: D) -> Result<Option<Vec<T>>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    objects(from).map(Some)
}

/// A present list of objects or `null`.
pub(crate) fn present_objects_or_null<'de, T, D>(from: D) -> Result<Option<Option<Vec<T>>>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    objects_or_null(from).map(Some)
}

/// An object in a field.
pub(crate) fn object<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    Object::deserialize(from).map(|object| object.0)
}

/// An object or `null`.
pub(crate) fn object_or_null<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
    Option::deserialize(from).map(|object: Option<Object<T>>| object.map(|object| object.0))
}

/// A present object or `null`.
pub(crate) fn present_object_or_null<'de, T, D>(from: D) -> Result<Option<Option<T>>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    object_or_null(from).map(Some)
}

/// An object in a field that may be absent but not `null`.
pub(crate) fn optional_object<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
    object(from).map(Some)
}

/// A nullable field that must be there: with a reader of its own serde does not take an absent field for `null`.
pub(crate) fn nullable<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
    Option::deserialize(from)
}

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

/// A whole number that may be absent but not `null`; `5.0` is one, `5.5` is not. The bounds are the schema's to check.
pub(crate) fn whole<'de, D, N>(from: D) -> Result<Option<N>, D::Error>
where
    D: Deserializer<'de>,
    N: TryFrom<i64, Error: fmt::Display>,
{
    let number = serde_json::Number::deserialize(from)?;
    let whole = exact(&number).ok_or_else(|| D::Error::custom(format!("expected a whole number, got {number}")))?;
    N::try_from(whole).map(Some).map_err(D::Error::custom)
}

/// A whole number that must be there.
pub(crate) fn required_whole<'de, D, N>(from: D) -> Result<N, D::Error>
where
    D: Deserializer<'de>,
    N: TryFrom<i64, Error: fmt::Display>,
{
    whole(from)?.ok_or_else(|| D::Error::custom("expected a whole number"))
}

/// A whole number or `null`.
pub(crate) fn whole_or_null<'de, D, N>(from: D) -> Result<Option<N>, D::Error>
where
    D: Deserializer<'de>,
    N: TryFrom<i64, Error: fmt::Display>,
{
    match Option::<serde_json::Number>::deserialize(from)? {
        None => Ok(None),
        Some(number) => whole(number).map_err(D::Error::custom),
    }
}

/// A present whole number or `null`.
pub(crate) fn present_whole_or_null<'de, D, N>(from: D) -> Result<Option<Option<N>>, D::Error>
where
    D: Deserializer<'de>,
    N: TryFrom<i64, Error: fmt::Display>,
{
    whole_or_null(from).map(Some)
}

fn exact(number: &serde_json::Number) -> Option<i64> {
    if let Some(whole) = number.as_i64() {
        return Some(whole);
    }
    let float = number
        .as_f64()
        .filter(|float| float.fract() == 0.0 && float.abs() <= EXACT)?;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "within 2^53 and without a fraction, so exact"
    )]
    Some(float as i64)
}
