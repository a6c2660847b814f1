//! The server: the HTTP API, and the loops that keep pools filled.

mod app;
mod audit;
mod builds;
mod claims;
mod doors;
mod events;
mod history;
mod http;
mod metrics;
mod options;
mod pools;
mod recipes;
mod repos;
mod retention;
mod secrets;
mod serve;
mod servers;
mod status;
mod templates;
mod vms;
mod wake;
mod web;
mod webhooks;

use hearth_store as store;

#[doc(hidden)]
pub use hearth_store::{
    Census, CopiedTable, CopyError, CopyProgress, PostgresUrl, WriteFault, WriteFaults, WriteMoment,
    images_of_data_folder,
};
pub use http::{MAX_BODY_BYTES, TlsError, body_faults, openapi_document};
pub use options::{
    AcmeSettings, Address, Changeable, Control, DriverKind, Listen, Listener, OpenIdSettings, Pulse, ServeOptions,
    SignInRule, Sizes, TlsFiles, TlsSource, UNIX,
};
pub use repos::sources::SourceRule;
pub use repos::watch::WebhookSecret;
pub use serve::{
    BackupError, Description, KeySource, MoveError, Removed, ServeError, back_up, describe, is_data_folder, move_store,
    restore, serve, serve_with, uninstall,
};
