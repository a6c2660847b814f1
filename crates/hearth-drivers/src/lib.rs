//! The hands: one trait, one module per driver, one contract suite that all of them pass.

mod driver;

pub use driver::{
    ByteStream, CALL_TIMEOUT, Capabilities, Created, Driver, DriverError, VmInfo, VmShape, VmSpec, VmState,
};
