//! Opaque identifiers. Clients must not read anything into them; Hearth makes them so that they sort by creation time.

use std::fmt;
use std::sync::LazyLock;

use fancy_regex::Regex;
use serde::{Deserialize, Serialize};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};
use uuid::Uuid;

use crate::values::Rule;

/// Why a text cannot be an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidId;

impl fmt::Display for InvalidId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an id is 1 to 64 characters of a-z, 0-9, '-' and '_'")
    }
}

impl std::error::Error for InvalidId {}

/// The one rule for ids: they are safe as a file name, as a URL segment and as part of a host name.
pub(crate) const RULE: Rule = Rule {
    min_chars: 1,
    max_chars: 64,
    pattern: "^[a-z0-9_-]+$",
    message: "must be an id: characters of a-z, 0-9, `-` and `_`",
    example: None,
};

fn check(text: &str) -> Result<(), InvalidId> {
    static REGEX: LazyLock<Option<Regex>> = LazyLock::new(|| RULE.compile());
    RULE.check(REGEX.as_ref(), text).map_err(|_| InvalidId)
}

/// What published examples are made from: an id like any other, whose last digits tell examples apart.
const EXAMPLE: Uuid = Uuid::from_u128(0x019a_42f6_c0b2_7d0f_8f3a_5be1_c7d9_e600);

macro_rules! id {
    ($(#[doc = $doc:literal])+ $name:ident, $prefix:literal) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// A new id, later than every one made before it on this machine.
            #[must_use]
            pub fn generate() -> Self {
                Self::of(Uuid::now_v7())
            }

            /// The id that examples show in place number `nth`.
            #[must_use]
            pub fn example(nth: u8) -> Self {
                Self::of(Uuid::from_u128(EXAMPLE.as_u128() | u128::from(nth)))
            }

            fn of(unique: Uuid) -> Self {
                Self(format!(concat!($prefix, "{}"), unique.simple()))
            }

            /// The text that goes over the wire.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::try_from(text.to_owned())
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                check(&text)?;
                Ok(Self(text))
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                RULE.schema(&[$($doc),+])
            }
        }

        impl ToSchema for $name {}
    };
}

id!(
    /// A project: repositories + variables + set-up, owned by a tenant.
    ProjectId,
    "prj_"
);
id!(
    /// The record of one VM made for a pool, from request to deletion (`id` in the API).
    InstanceId,
    "wpi_"
);
id!(
    /// The VM itself, as the driver knows it (`instanceId` in the API).
    VmId,
    "vm-"
);
id!(
    /// An API token's public name; the secret part is never an id.
    TokenId,
    "tok_"
);
id!(
    /// An outgoing webhook.
    WebhookId,
    "whk_"
);
id!(
    /// One event on its way to a webhook's receiver.
    DeliveryId,
    "msg_"
);
