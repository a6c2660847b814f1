//! The brain: states and the one table of legal moves, recipes, the stages of a build, plans. Pure: no IO, no clock, no SQL.

pub mod advice;
pub mod checkout;
pub mod checkpoint;
pub mod claim;
pub mod memory;
pub mod plain_text;
pub mod plan;
pub mod progress;
pub mod provisioned;
pub mod purpose;
pub mod recipe;
pub mod redact;
pub mod schedule;
pub mod scripts;
pub mod set_up;
pub mod stage_log;
pub mod stages;
pub mod state;
pub mod step_record;
pub mod tenant;
pub mod time;
pub mod world;
