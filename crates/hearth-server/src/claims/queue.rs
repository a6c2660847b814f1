//! The claims that wait, each pool's in the order in which they came: what becomes ready goes to the first, so that a VM
//! whose own claim has gone away serves the next one and was not made in vain. In memory only: its claims end with the server.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hearth_api::ids::{InstanceId, ProjectId};
use hearth_core::claim::{ClaimScope, QueueView};
use tokio::sync::Notify;

use super::reservation::Inbox;

/// A claim that waits checks this often even without a notification, because what it needs may come without an instance that
/// changes.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// One further back in the queue checks less often, as many times as there are before it, and at most so many: else a hundred that wait
/// ask the database for more than it can answer.
const MOST_TIMES: usize = 10;

/// All queues of a server. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Queues(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    next: u64,
    queues: HashMap<Name, BTreeMap<u64, Waiter>>,
}

/// Claims of a pool that would take the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Name {
    project: ProjectId,
    scope: ClaimScope,
}

#[derive(Debug)]
struct Waiter {
    bell: Arc<Notify>,
    /// The instance that is made for it.
    own: Option<InstanceId>,
    /// Receives instances that other claims leave to it.
    inbox: Inbox,
    /// It has taken a VM and is trying it: the next one need not wait.
    served: bool,
}

/// A claim's ticket: its place in a queue until it is dropped; then the next claim is notified.
#[derive(Debug)]
pub(super) struct Ticket {
    queues: Queues,
    name: Name,
    number: u64,
    bell: Arc<Notify>,
}

impl Queues {
    fn with<T>(&self, act: impl FnOnce(&mut Kept) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What a claim sees that has no ticket.
    pub(super) fn outside(&self, project: &ProjectId, scope: ClaimScope) -> QueueView {
        let project = project.clone();
        let name = Name { project, scope };
        let waiting = self.with(|kept| kept.queues.get(&name).map_or(0, BTreeMap::len));
        QueueView::Outside { waiting }
    }

    /// How many claims wait for a VM of a pool; one that has taken a VM waits for none.
    pub fn waiting(&self, project: &ProjectId) -> usize {
        self.with(|kept| {
            let waiters = kept.of(project).flat_map(BTreeMap::values);
            waiters.filter(|waiter| !waiter.served).count()
        })
    }

    /// A ticket at the end of the queue, for a claim that may have an instance of its own in the making.
    pub(super) fn join(&self, project: &ProjectId, scope: ClaimScope, own: Option<InstanceId>, inbox: Inbox) -> Ticket {
        let project = project.clone();
        let name = Name { project, scope };
        let bell = Arc::new(Notify::new());
        let number = self.with(|kept| {
            kept.next += 1;
            let waiter = Waiter {
                bell: bell.clone(),
                own,
                inbox,
                served: false,
            };
            kept.queues.entry(name.clone()).or_default().insert(kept.next, waiter);
            kept.next
        });
        Ticket {
            queues: self.clone(),
            name,
            number,
            bell,
        }
    }

    /// An instance changed: the claim that it is made for checks, and the first of each queue.
    pub fn notify(&self, project: &ProjectId, instance: &InstanceId) {
        self.with(|kept| {
            for waiters in kept.of(project) {
                notify_first(waiters);
                if let Some(owner) = waiters.values().find(|waiter| waiter.own.as_ref() == Some(instance)) {
                    owner.bell.notify_one();
                }
            }
        });
    }

    /// What instances are made by changed: all check.
    pub fn notify_all(&self, project: &ProjectId) {
        self.with(|kept| {
            let waiters = kept.of(project).flat_map(BTreeMap::values);
            waiters.for_each(|waiter| waiter.bell.notify_one());
        });
    }

    /// Nobody knows what changed: the first of each queue checks.
    pub fn notify_everyone(&self) {
        self.with(|kept| kept.queues.values().for_each(notify_first));
    }

    /// Leaves an instance to the first waiting claim that takes any recipe, else to the first strict one. False when none waits.
    pub(super) fn hand_on(&self, project: &ProjectId, instance: &InstanceId) -> bool {
        self.with(|kept| {
            [ClaimScope::Any, ClaimScope::Target].into_iter().any(|scope| {
                let project = project.clone();
                let waiters = kept.queues.get(&Name { project, scope });
                let mut waiters = waiters.into_iter().flat_map(BTreeMap::values);
                let heir = waiters.find(|waiter| !waiter.served && waiter.inbox.put(instance));
                heir.inspect(|waiter| waiter.bell.notify_one()).is_some()
            })
        })
    }
}

impl Kept {
    /// A pool's queues.
    fn of(&self, project: &ProjectId) -> impl Iterator<Item = &BTreeMap<u64, Waiter>> {
        ClaimScope::ALL.into_iter().filter_map(|scope| {
            let project = project.clone();
            self.queues.get(&Name { project, scope })
        })
    }
}

fn notify_first(waiters: &BTreeMap<u64, Waiter>) {
    if let Some(first) = waiters.values().find(|waiter| !waiter.served) {
        first.bell.notify_one();
    }
}

impl Ticket {
    /// What the claim sees that has it.
    pub(super) fn inside(&self) -> QueueView {
        QueueView::Inside { ahead: self.ahead() }
    }

    /// An instance is made for it.
    pub(super) fn owns(&self, own: &InstanceId) {
        self.change(|waiter| waiter.own = Some(own.clone()));
    }

    /// It has taken a VM: the next one in the queue checks, while this one is made the task's own.
    pub(super) fn step_aside(&self) {
        self.change(|waiter| waiter.served = true);
        self.queues.with(|kept| {
            if let Some(queue) = kept.queues.get(&self.name) {
                notify_first(queue);
            }
        });
    }

    /// What it took could not be used: the claim keeps its place.
    pub(super) fn step_back(&self) {
        self.change(|waiter| waiter.served = false);
    }

    fn change(&self, change: impl FnOnce(&mut Waiter)) {
        self.queues.with(|kept| {
            let queue = kept.queues.get_mut(&self.name);
            if let Some(waiter) = queue.and_then(|queue| queue.get_mut(&self.number)) {
                change(waiter);
            }
        });
    }

    /// Until there may be something for it.
    pub(super) async fn notified(&self) {
        // The time is over: then it checks without having been notified.
        let _ = tokio::time::timeout(self.check_again(), self.bell.notified()).await;
    }

    fn check_again(&self) -> Duration {
        let times = (1 + self.ahead()).min(MOST_TIMES);
        CHECK_EVERY.saturating_mul(u32::try_from(times).unwrap_or(1))
    }

    /// How many before it wait for the same.
    fn ahead(&self) -> usize {
        self.queues.with(|kept| {
            let before = kept.queues.get(&self.name).map(|queue| queue.range(..self.number));
            before.map_or(0, |before| before.filter(|(_, waiter)| !waiter.served).count())
        })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.queues.with(|kept| {
            let Some(queue) = kept.queues.get_mut(&self.name) else {
                return;
            };
            queue.remove(&self.number);
            if queue.is_empty() {
                kept.queues.remove(&self.name);
            } else {
                notify_first(queue);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_further_back_look_less_often_and_move_up() {
        let queues = Queues::default();
        let project = "prj_1".parse().unwrap();
        let join = || queues.join(&project, ClaimScope::Any, None, Inbox::default());
        let mut tickets: Vec<Ticket> = (0..50).map(|_| join()).collect();
        let seconds = |ticket: &Ticket| ticket.check_again().as_secs();
        assert_eq!([0, 1, 8, 9, 49].map(|at| seconds(&tickets[at])), [1, 2, 9, 10, 10]);
        // In a second they check as often as seven at the front would, and not as fifty.
        let looks: f64 = tickets
            .iter()
            .map(|ticket| 1.0 / ticket.check_again().as_secs_f64())
            .sum();
        assert!(looks < 8.0, "{looks}");
        tickets.remove(0);
        assert_eq!([0, 1].map(|at| seconds(&tickets[at])), [1, 2]);
    }
}
