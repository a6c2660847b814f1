//! The brain: states and the one table of legal moves, recipes, plans. Pure: no IO, no clock, no SQL.

pub mod claim;
pub mod memory;
pub mod plain_text;
pub mod plan;
pub mod progress;
pub mod recipe;
pub mod state;
pub mod world;
