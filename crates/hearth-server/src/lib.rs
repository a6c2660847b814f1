//! The house: HTTP API, store, provisioning, reconciliation.

mod http;
mod options;
mod provision;
mod reconcile;
mod secrets;
mod serve;
mod store;
mod watch;

pub use http::openapi_document;
pub use options::{DriverKind, ServeOptions, Sizes};
pub use serve::{ServeError, serve, serve_with};
#[doc(hidden)]
pub use store::{Census, WriteFault, WriteFaults, WriteMoment};
pub use watch::WebhookSecret;
