//! What images and drivers need of the machine they run on: helper programs and files. Knows nothing of VMs.

pub mod background;
pub mod files;
pub mod program;
pub mod sparse;
