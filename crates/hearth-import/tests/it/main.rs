//! Small repositories, one per format and mixture, and what is read from each; and files that were made to do harm.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report, in its helpers too")]

mod hostile;
mod in_memory;
mod repositories;
