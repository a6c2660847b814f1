//! The planner and claims from outside: scenarios as text, and properties over random worlds.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report, in its helpers too")]

mod claim_model;
mod claim_properties;
mod claim_scenarios;
mod model;
mod properties;
mod scenarios;
