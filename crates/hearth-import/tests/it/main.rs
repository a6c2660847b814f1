//! Small repositories, one per format and mixture, and what is read from each; and files that were made to do harm.

mod hostile;
mod in_memory;
mod repositories;
