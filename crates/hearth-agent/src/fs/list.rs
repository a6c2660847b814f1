//! What a folder holds, some levels deep, within a bound.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hearth_guest::files::{Entry, EntryKind, EntryList, FaultCode};

use super::entry::{self, Names};
use super::fault;
use crate::reply::Fault;
use crate::users::Identity;

/// How many folders that could not be read are named.
const MAX_UNREADABLE: usize = 100;

/// Level by level, so that a list that is cut holds what is nearest. Links below are not followed.
pub(super) fn list(path: &Path, depth: u32, limit: usize, user: &Identity) -> Result<EntryList, Fault> {
    let refused = |error: io::Error| fault::of(path, user, &error);
    if !fs::metadata(path).map_err(refused)?.is_dir() {
        let message = format!("{} is not a folder", path.display());
        return Err(fault::conflict(FaultCode::NotFolder, message));
    }
    let names = Names::default();
    let mut found: Vec<(PathBuf, Entry)> = Vec::new();
    let mut list = EntryList::default();
    let mut waiting = VecDeque::from([(path.to_owned(), 1)]);
    while let Some((folder, level)) = waiting.pop_front() {
        let held = match names_in(&folder, limit - found.len()) {
            Ok(held) => held,
            Err(error) if level == 1 => return Err(refused(error)),
            // It went away meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(_) => {
                if list.unreadable.len() < MAX_UNREADABLE {
                    list.unreadable.push(folder.to_string_lossy().into_owned());
                }
                continue;
            }
        };
        for name in held {
            if found.len() == limit {
                list.truncated = true;
                break;
            }
            let place = folder.join(name);
            // What went away meanwhile is not there.
            let Ok(entry) = entry::read(&place, &names) else {
                continue;
            };
            if entry.kind == EntryKind::Directory && level < depth {
                waiting.push_back((place.clone(), level + 1));
            }
            found.push((place, entry));
        }
        if list.truncated {
            break;
        }
    }
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    list.items = found.into_iter().map(|(_, entry)| entry).collect();
    Ok(list)
}

/// The names in a folder, sorted; of one that holds more than there is room for, one more than there is room for.
fn names_in(folder: &Path, room: usize) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.push(entry?.file_name());
        if names.len() > room {
            break;
        }
    }
    names.sort();
    Ok(names)
}
