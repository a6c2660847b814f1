//! Lists.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa::openapi::schema::{ArrayBuilder, Schema};
use utoipa::openapi::{Ref, RefOr};

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Page<T> {
    /// The items of this page.
    #[schema(schema_with = of_page::<T>)]
    pub items: Vec<T>,
    /// Pass it as `cursor` for the next page; `null` on the last.
    #[schema(required)]
    pub next_cursor: Option<String>,
    /// Whether there is a next page.
    pub has_more: bool,
}

/// A short list that is always complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Items<T> {
    /// All of it.
    #[schema(schema_with = of_list::<T>)]
    pub items: Vec<T>,
}

/// The derive writes an item's whole schema into each list of it.
fn items<T: ToSchema>(description: &str) -> RefOr<Schema> {
    ArrayBuilder::new()
        .description(Some(description))
        .items(Ref::from_schema_name(T::name()))
        .into()
}

fn of_page<T: ToSchema>() -> RefOr<Schema> {
    items::<T>("The items of this page.")
}

fn of_list<T: ToSchema>() -> RefOr<Schema> {
    items::<T>("All of it.")
}
