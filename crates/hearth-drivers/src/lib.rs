//! The hands: one trait, one module per driver, one contract suite that all of them pass.

mod call;
mod checkpoint;
mod driver;
mod error;
pub mod fake;
pub mod host;
pub mod incus;
mod locks;
mod network;
mod process;
pub mod qemu;
mod vm_user;

pub use checkpoint::{
    CheckDepth, CheckpointFault, CheckpointInfo, CheckpointSpec, ForkPurpose, ForkSpec, ForkStart, SnapshotSpec,
    VmUsage,
};
pub use driver::{
    ByteStream, CALL_TIMEOUT, Capabilities, Created, Driver, DriverError, Egress, FullDisk, VmInfo, VmShape, VmSpec,
    VmState,
};
pub use hearth_core::checkpoint::{CheckpointKey, InvalidKey};
pub use locks::Locks;
pub use network::{
    GATEWAY_WORD, closed_network, gateway_program, host_addresses, never_open, not_public, parse_resolver, run_gateway,
};
