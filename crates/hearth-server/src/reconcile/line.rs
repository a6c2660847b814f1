//! The claims that wait, each pool's in the order in which they came: whatever becomes ready is the first one's, so that a VM
//! whose own claim has gone away serves the next instead of being made in vain. A cache: when it is lost, nobody waits any more.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hearth_api::ids::{InstanceId, ProjectId};
use tokio::sync::Notify;

use super::reservation::Inbox;

/// A claim that waits looks this often even when nobody rings, because what it needs may come without an instance that changes.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// All lines of a server.
#[derive(Debug, Clone, Default)]
pub(super) struct Lines(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    next: u64,
    lines: HashMap<Line, BTreeMap<u64, Waiter>>,
}

/// Claims of a pool that want the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Line {
    project: ProjectId,
    wants: Wants,
}

/// What a claim would take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Wants {
    /// Any instance of the pool.
    Any,
    /// One of the wanted recipe; what it does not take, others may.
    Current,
    /// Only the one that is made for it.
    Own,
}

impl Wants {
    const ALL: [Self; 3] = [Self::Any, Self::Current, Self::Own];
}

#[derive(Debug)]
struct Waiter {
    bell: Arc<Notify>,
    /// The instance that is made for it.
    own: Option<InstanceId>,
    /// Takes what others leave it.
    inbox: Inbox,
}

/// A claim's place, until it is dropped; then the next one is rung.
#[derive(Debug)]
pub(super) struct Place {
    lines: Lines,
    line: Line,
    number: u64,
    bell: Arc<Notify>,
}

impl Lines {
    fn with<T>(&self, act: impl FnOnce(&mut Kept) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether nobody waits for the same.
    pub(super) fn is_empty(&self, project: &ProjectId, wants: Wants) -> bool {
        let project = project.clone();
        self.with(|kept| !kept.lines.contains_key(&Line { project, wants }))
    }

    /// How many claims wait for a VM of a pool.
    pub(super) fn waiting(&self, project: &ProjectId) -> usize {
        let lines = Wants::ALL.map(|wants| Line {
            project: project.clone(),
            wants,
        });
        self.with(|kept| {
            lines
                .iter()
                .filter_map(|line| kept.lines.get(line))
                .map(BTreeMap::len)
                .sum()
        })
    }

    /// A place at the end, for a claim that may have an instance of its own in the making.
    pub(super) fn join(&self, project: &ProjectId, wants: Wants, own: Option<InstanceId>, inbox: Inbox) -> Place {
        let project = project.clone();
        let line = Line { project, wants };
        let bell = Arc::new(Notify::new());
        let number = self.with(|kept| {
            kept.next += 1;
            let waiter = Waiter {
                bell: bell.clone(),
                own,
                inbox,
            };
            kept.lines.entry(line.clone()).or_default().insert(kept.next, waiter);
            kept.next
        });
        Place {
            lines: self.clone(),
            line,
            number,
            bell,
        }
    }

    /// An instance changed: whoever it is made for looks, and whoever is first.
    pub(super) fn ring(&self, project: &ProjectId, instance: &InstanceId) {
        self.each(project, |at, waiter| at == 0 || waiter.own.as_ref() == Some(instance));
    }

    /// What instances are made by changed: all look.
    pub(super) fn ring_all(&self, project: &ProjectId) {
        self.each(project, |_, _| true);
    }

    /// Leaves an instance to the claim that has waited longest and takes what the pool has. False when none waits.
    pub(super) fn hand_on(&self, project: &ProjectId, instance: &InstanceId) -> bool {
        self.with(|kept| {
            [Wants::Any, Wants::Current].into_iter().any(|wants| {
                let project = project.clone();
                let waiters = kept.lines.get(&Line { project, wants });
                let mut waiters = waiters.into_iter().flat_map(BTreeMap::values);
                let heir = waiters.find(|waiter| waiter.inbox.put(instance));
                heir.inspect(|waiter| waiter.bell.notify_one()).is_some()
            })
        })
    }

    fn each(&self, project: &ProjectId, concerns: impl Fn(usize, &Waiter) -> bool) {
        self.with(|kept| {
            for wants in Wants::ALL {
                let project = project.clone();
                let line = Line { project, wants };
                let waiters = kept.lines.get(&line).into_iter().flat_map(BTreeMap::values);
                let concerned = waiters.enumerate().filter(|(at, waiter)| concerns(*at, waiter));
                concerned.for_each(|(_, waiter)| waiter.bell.notify_one());
            }
        });
    }
}

impl Place {
    /// Whether nobody has waited longer.
    pub(super) fn is_first(&self) -> bool {
        self.lines.with(|kept| {
            let line = kept.lines.get(&self.line);
            line.and_then(|line| line.keys().next()) == Some(&self.number)
        })
    }

    /// An instance is made for it.
    pub(super) fn owns(&self, own: &InstanceId) {
        self.lines.with(|kept| {
            let line = kept.lines.get_mut(&self.line);
            if let Some(waiter) = line.and_then(|line| line.get_mut(&self.number)) {
                waiter.own = Some(own.clone());
            }
        });
    }

    /// Until there may be something for it.
    pub(super) async fn rung(&self) {
        // The time is over: then it looks without having been rung.
        let _ = tokio::time::timeout(LOOK_AGAIN, self.bell.notified()).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.lines.with(|kept| {
            let Some(line) = kept.lines.get_mut(&self.line) else {
                return;
            };
            line.remove(&self.number);
            match line.values().next() {
                Some(first) => first.bell.notify_one(),
                None => {
                    kept.lines.remove(&self.line);
                }
            }
        });
    }
}
