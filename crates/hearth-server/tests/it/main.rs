//! The server through its front door: real router, real store, the fake driver where only the house is tested and real
//! QEMU where a claim about the product is made.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod backup;
mod branches;
mod cancel;
mod changes;
mod checkpoints;
mod claims;
mod clear;
mod contract;
mod credentials;
mod documents;
mod edges;
mod egress;
mod ended;
mod exec;
mod explain;
mod extra_content;
mod faults;
mod files;
mod fork;
mod fork_vms;
mod fresh;
mod full_disk;
mod git_host;
mod guests;
mod harness;
mod images;
mod leases;
mod leases_disk;
mod mirrors;
mod named_failures;
mod names;
mod pages;
mod pause;
mod pools;
mod ports;
mod refusals;
mod repositories;
mod restart;
mod rubbish;
mod secrets;
mod sessions;
mod set_up_failures;
mod set_ups;
mod setup;
mod sources;
mod templates;
mod terminal;
mod tokens;
mod tunnels;
mod vm_ends;
mod vms;
mod watch;
