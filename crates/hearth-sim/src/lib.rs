//! What `cargo xtask sim` runs: the planner under a simulated clock, with the fake driver's machines, and with delays and faults
//! drawn from a seed. It checks the planner's promises in every pass, and those of claims; it ends with the seed of a run that broke one.
//!
//! It is not the server: SQL, HTTP, agents and the provisioning steps are not in it, and rows are kept in memory. What it says of
//! the planner, and of what a claim does next, it says of the code that the server runs.

mod chaos;
mod checks;
mod claims;
mod command;
mod figures;
mod growth;
mod machines;
mod sim;
mod state;
mod tale;
mod work;

pub use command::run;
pub use tale::{PoolTold, Tale, tell};
