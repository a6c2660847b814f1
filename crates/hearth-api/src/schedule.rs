//! When a pool keeps another number of VMs ready than its own target size: as many for working hours, none at night.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::time;
use crate::values::{CronText, TimeZoneName};

/// Windows of one schedule.
pub const MAX_WINDOWS: usize = 50;

/// Body of PUT. Outside of every window the pool's own target size holds; where windows overlap, the largest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "timeZone": "Europe/Berlin", "windows": [{ "start": "0 8 * * 1-5", "end": "0 18 * * 1-5", "targetSize": 8 }]
}))]
pub struct PoolSchedule {
    /// Where the windows' times are local: a name of the IANA time zone database.
    pub time_zone: TimeZoneName,
    /// None of them removes the schedule.
    #[schema(max_items = 50)]
    pub windows: Vec<ScheduleWindow>,
}

/// From each `start` to the `end` after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScheduleWindow {
    /// When it begins.
    pub start: CronText,
    /// When it ends.
    pub end: CronText,
    /// How many VMs are kept ready in it.
    #[serde(deserialize_with = "crate::patch::required_whole")]
    #[schema(minimum = 0, maximum = 20)]
    pub target_size: i64,
}

/// A schedule, and what it comes to now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolScheduleView {
    /// `null` where there is no schedule.
    #[schema(required)]
    pub time_zone: Option<TimeZoneName>,
    /// The windows.
    pub windows: Vec<ScheduleWindow>,
    /// How many VMs are kept ready now.
    pub target_size: i64,
    /// How many outside of every window: the pool's own `targetSize`.
    pub own_target_size: i64,
    /// When a window begins or ends next; `null` where none will.
    #[serde(with = "time::nullable")]
    #[schema(value_type = Option<String>, format = DateTime, required)]
    pub changes_at: Option<Timestamp>,
}
