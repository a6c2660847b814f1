//! Files that are written beside their places and then renamed, so that half of one is never seen under its own name. Who watches a folder
//! wants to hear of the files that come out of it, and of nothing else: their names are known here, and what each takes the place of.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How the names of such files begin.
pub const PREFIX: &str = ".hearth-";
/// Names that are remembered. The kernel tells watchers within moments, and as many are hardly ever written at once.
const REMEMBERED: usize = 4096;

/// The names of this process, newest last, and whether each takes the place of a file that is there.
static NAMES: Mutex<VecDeque<(OsString, bool)>> = Mutex::new(VecDeque::new());

fn names() -> MutexGuard<'static, VecDeque<(OsString, bool)>> {
    NAMES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file of this name is about to be made; `replaces`: it takes the place of one that is there.
pub fn note(name: &OsStr, replaces: bool) {
    let mut names = names();
    if names.len() == REMEMBERED {
        names.pop_front();
    }
    names.push_back((name.to_owned(), replaces));
}

/// Whether a file of this name takes the place of another one; `None` when it is none of ours.
#[must_use]
pub fn replaces(name: &OsStr) -> Option<bool> {
    if !name.as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
        return None;
    }
    let names = names();
    let found = names.iter().rev().find(|(known, _)| known == name);
    found.map(|(_, replaces)| *replaces)
}
