//! The planner from outside: scenarios as text, and properties over random worlds.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report, in its helpers too")]

mod model;
mod properties;
mod scenarios;
