//! What happens to projects, pools, instances and claims, as events in the order in which it was written.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::ids::{InstanceId, ProjectId};
use crate::time;

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)+) => {
        /// What happened. More kinds may come: a client ignores those that it does not know.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum EventKind {
            $($(#[doc = $doc])+ #[serde(rename = $text)] $name,)+
        }

        impl EventKind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The name on the wire and in the database.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

kinds! {
    /// A project was made.
    ProjectCreated = "project.created",
    /// A project's configuration, set-up, variables, credentials or egress policy changed; `detail.what` says which.
    ProjectChanged = "project.changed",
    /// A project was deleted.
    ProjectDeleted = "project.deleted",
    /// A pool's configuration changed; `detail` has the new one.
    PoolChanged = "pool.changed",
    /// Failures up to now do not count against the pool any more.
    PoolRetried = "pool.retried",
    /// A pool has another home among the servers of one database; `detail.server` says which.
    PoolMoved = "pool.moved",
    /// An instance was ordered.
    InstanceProvisioning = "instance.provisioning",
    /// The server began to make an instance.
    InstanceStarted = "instance.started",
    /// A server ended in the middle: the instance is made again.
    InstanceInterrupted = "instance.interrupted",
    /// A step of making an instance ended; `detail` has its name, status and duration.
    InstanceStep = "instance.step",
    /// An instance can be claimed, or a test succeeded.
    InstanceReady = "instance.ready",
    /// A claim took an instance.
    InstanceClaimed = "instance.claimed",
    /// An instance failed.
    InstanceFailed = "instance.failed",
    /// An instance that was made for a claim belongs to the pool now.
    InstancePooled = "instance.pooled",
    /// The guest of an instance restarted.
    InstanceRebooted = "instance.rebooted",
    /// The VM of a claimed instance ended by itself.
    InstanceEnded = "instance.ended",
    /// The VM of an instance is being removed; its record stays.
    InstanceRetiring = "instance.retiring",
    /// Only the record of an instance is left.
    InstanceArchived = "instance.archived",
    /// An instance is being deleted.
    InstanceDeleting = "instance.deleting",
    /// An instance is gone.
    InstanceRemoved = "instance.removed",
    /// A claim's VM is the task's own; `detail` has the source and the wait.
    ClaimHandedOver = "claim.handedOver",
    /// A claim was taken back before it was answered.
    ClaimUndone = "claim.undone",
    /// The lease of a claim ends later.
    ClaimExtended = "claim.extended",
    /// A claim ended: it was released, its lease ran out, or its project was deleted.
    ClaimEnded = "claim.ended",
    /// A VM was replaced by one that continues from a checkpoint.
    ClaimRestored = "claim.restored",
    /// A template is there: instances of its recipe are forked from it.
    TemplateMade = "template.made",
    /// A template is gone.
    TemplateRemoved = "template.removed",
    /// A checkpoint was found damaged.
    CheckpointDamaged = "checkpoint.damaged",
    /// A named checkpoint was made.
    CheckpointMade = "checkpoint.made",
    /// A named checkpoint is gone.
    CheckpointRemoved = "checkpoint.removed",
}

// By hand: the derive does not see names that a macro gives.
impl PartialSchema for EventKind {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some(
                "What happened. More kinds may come: a client ignores those that it does not know.",
            ))
            .enum_values(Some(Self::ALL.iter().map(|kind| kind.as_str())))
            .into()
    }
}

impl ToSchema for EventKind {}

impl std::fmt::Display for EventKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that names no kind of event that this version knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownKind(String);

impl std::fmt::Display for UnknownKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` is no kind of event that this version knows", self.0)
    }
}

impl std::error::Error for UnknownKind {}

impl std::str::FromStr for EventKind {
    type Err = UnknownKind;
    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        let found = Self::ALL.iter().find(|kind| kind.as_str() == text);
        found.copied().ok_or_else(|| UnknownKind(text.to_owned()))
    }
}

/// One change, written in the same transaction as what it tells of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Grows from event to event; what `Last-Event-ID` and `after` take.
    pub id: u64,
    /// When it happened.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// To which project.
    pub project_id: ProjectId,
    /// To which instance, if to one.
    #[serde(default)]
    #[schema(required)]
    pub instance_id: Option<InstanceId>,
    /// What happened.
    pub kind: EventKind,
    /// Why, as a message for people.
    #[serde(default)]
    #[schema(required)]
    pub reason: Option<String>,
    /// More, depending on the kind.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub detail: Value,
}

/// Data of the events `begin` (the first of a stream) and `end` (the last one of a stream that does not follow): the client has everything up to
/// this event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EventsPosition {
    /// That event; 0 when there was none yet.
    pub after: u64,
}

/// Data of the event `reset`: what came after the client's last event is not kept any more, or never was here. The client reads the state
/// anew; what happens from now on follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EventsReset {
    /// The oldest event that is kept.
    pub oldest: u64,
    /// The newest one: the stream continues after it.
    pub newest: u64,
}

/// What the data of a stream of events is: of `begin` and `end` a position, of `reset` what is kept, of all others an event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum EventsData {
    /// What happened.
    Event(Event),
    /// What is kept.
    Reset(EventsReset),
    /// Where the stream is.
    Position(EventsPosition),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_on_the_wire_and_in_the_database() {
        for kind in EventKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(*kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
        assert!("instance.dreaming".parse::<EventKind>().is_err());
    }
}
