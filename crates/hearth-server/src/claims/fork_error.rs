//! Why a VM is not forked, or no checkpoint of it is made, as an error with its message.

use hearth_core::claim::Held;
use hearth_core::plain_text::clause;
use hearth_core::redact::Redacted;
use hearth_drivers::DriverError;

use crate::store::StoreError;

/// Why there are no forks.
#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    /// The driver cannot.
    #[error("the driver `{0}` makes no checkpoints of VMs in use")]
    Unable(&'static str),
    /// The limits.
    #[error("{}; {count} more VMs were asked for, and none was made", clause(.reason))]
    NoRoom {
        reason: String,
        /// How many were asked for.
        count: usize,
    },
    /// The project's own limit.
    #[error(
        "the project's claims hold {} of the {} VMs that they may hold (`maxClaims`), and {count} more were asked for; none was made. Release \
         one (`hearth release ID`), or allow more (`hearth project set PROJECT --max-claims NUMBER`)",
        .held.now, .held.most
    )]
    TooManyHeld {
        held: Held,
        /// How many were asked for.
        count: usize,
    },
    /// The token's own limit.
    #[error(
        "this token's claims hold {} of the {} VMs that they may hold (`maxVms` of the token), and {count} more were asked for; none was \
         made. Release one first",
        .held.now, .held.most
    )]
    TokenFull {
        held: Held,
        /// How many were asked for.
        count: usize,
    },
    /// The task id cannot be used.
    #[error("{0}")]
    Task(String),
    /// A key is another request's.
    #[error("the task id `{0}` was used before for something else; use a new one, or ask for the same")]
    OtherRequest(String),
    /// What was made for this request is gone.
    #[error("a VM of this task id was released or its lease ended; use a new task id")]
    Ended,
    /// It was released meanwhile.
    #[error("the instance is not claimed any more")]
    NotClaimed,
    /// The name of a checkpoint.
    #[error("the project has a checkpoint of this name already: delete it, or choose another name")]
    NameTaken,
    /// Its files are on another machine.
    #[error(
        "the checkpoint {name} is on the server {server}: VMs continue from it there alone; for a claim `hearth server move PROJECT {server}` \
         gives the pool that home"
    )]
    OtherServer { name: String, server: String },
    /// The VM could not be frozen.
    #[error("no checkpoint of the VM could be made: {0}")]
    Freeze(#[from] DriverError),
    /// A fork.
    #[error("a fork could not be made: {}; none of this request was kept", clause(.0))]
    Copy(Redacted),
    /// It was broken off.
    #[error("it was broken off: {0}")]
    Broken(String),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}
