//! The hands: one trait, one module per driver, one contract suite that all of them pass.

mod driver;
mod error;
pub mod fake;
mod files;
pub mod host;
pub mod image;
mod network;
mod process;
mod program;
pub mod qemu;

pub use driver::{
    ByteStream, CALL_TIMEOUT, Capabilities, Created, Driver, DriverError, VmInfo, VmShape, VmSpec, VmState,
};
