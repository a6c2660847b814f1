//! Who works with which mirror at the moment: a mirror is removed only while nobody does.

use std::collections::HashMap;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// All mirrors that somebody works with.
#[derive(Debug, Clone, Default)]
pub(super) struct Uses(Arc<Mutex<HashMap<PathBuf, usize>>>);

/// A mirror that stays where it is until this is dropped.
#[derive(Debug)]
pub struct InUse {
    mirror: PathBuf,
    uses: Uses,
}

impl Uses {
    fn counts(&self) -> MutexGuard<'_, HashMap<PathBuf, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody begins to work with this mirror, whether or not it is there yet.
    pub(super) fn begin(&self, mirror: PathBuf) -> InUse {
        *self.counts().entry(mirror.clone()).or_default() += 1;
        let uses = self.clone();
        InUse { mirror, uses }
    }

    /// Does this unless somebody works with the mirror; nobody can begin meanwhile. Whether it was done.
    pub(super) fn unless_used<E>(&self, mirror: &Path, act: impl FnOnce() -> Result<(), E>) -> Result<bool, E> {
        let counts = self.counts();
        if counts.contains_key(mirror) {
            return Ok(false);
        }
        act().map(|()| true)
    }
}

impl Clone for InUse {
    fn clone(&self) -> Self {
        self.uses.begin(self.mirror.clone())
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut counts = self.uses.counts();
        if let Some(count) = counts.get_mut(&self.mirror) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.mirror);
            }
        }
    }
}

impl Deref for InUse {
    type Target = Path;
    fn deref(&self) -> &Path {
        &self.mirror
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirror_is_touched_only_while_nobody_works_with_it() {
        let (uses, mirror) = (Uses::default(), PathBuf::from("/a.git"));
        let free = |at: &str| uses.unless_used(Path::new(at), || Ok::<_, ()>(())).unwrap();
        assert!(free("/a.git"));
        let one = uses.begin(mirror.clone());
        let other = one.clone();
        assert_eq!((&*other, free("/a.git"), free("/b.git")), (&*mirror, false, true));
        drop(one);
        assert!(!free("/a.git"), "the other one still works with it");
        drop(other);
        assert!(free("/a.git"));
        assert_eq!(uses.unless_used(&mirror, || Err("no")), Err("no"));
    }
}
