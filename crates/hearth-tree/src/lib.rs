//! Folders as tar streams, for both ends of a copy: [`pack()`] reads one, [`unpack()`] writes one below a folder and nowhere else, whatever
//! the stream says. Only files, folders and links travel. Memory does not grow with the files.
//!
//! What could not be packed is named at the end of the stream, in a global pax header that other programs skip.

mod below;
pub mod beside;
mod pack;
mod skipped;
mod unpack;

pub use pack::pack;
pub use skipped::Skipped;
pub use unpack::{Links, Options, UnpackError, Unpacked, unpack};
