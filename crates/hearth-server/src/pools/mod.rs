//! Pools: the loop that makes the world as the pools' configurations say. `controller.rs` is the loop, `observe.rs` reads, `act.rs` does
//! what the planner decided, `orders.rs` writes what people and renewals ask for. Only here, in `claims/` and `vms/` do the store and
//! the drivers meet.

pub mod act;
pub mod blockers;
pub mod cancel;
pub mod controller;
pub mod endings;
mod leader;
pub mod observe;
pub mod orders;
pub mod schedule;
mod take_over;
mod tasks;
mod tokens;
