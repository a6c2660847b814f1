//! The house: HTTP API, provisioning, reconciliation.

mod claims;
mod http;
mod images;
mod options;
mod provision;
mod reconcile;
mod secrets;
mod serve;
mod sources;
mod vms;
mod wake;
mod watch;

use hearth_store as store;

#[doc(hidden)]
pub use hearth_store::{Census, WriteFault, WriteFaults, WriteMoment, images_of_data_folder};
pub use http::{MAX_BODY_BYTES, body_faults, openapi_document};
pub use options::{DriverKind, ServeOptions, Sizes};
pub use serve::{ServeError, serve, serve_with};
pub use sources::SourceRule;
pub use watch::WebhookSecret;
