//! The brain: states and the one table of legal moves, recipes, plans. Pure: no IO, no clock, no SQL.

pub mod plan;
pub mod recipe;
pub mod state;
pub mod world;
