//! Follows the branches that enabled pools need: one poll per repository, now and then and when a webhook says so. A branch
//! that moved is fetched into the host's mirror, then its head is recorded, then the loop is woken: a reader of the head finds the
//! commit without the network. What follows from a new branch head is decided elsewhere. Memory holds only when to poll and what
//! cannot be followed; a server that starts polls everything once.

mod address;
mod faults;
mod poll;
mod schedule;
mod secret;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hearth_api::ids::ProjectId;
use hearth_core::checkout::Remote;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::repos::checkouts::checkouts;
use crate::repos::mirrors::Mirrors;
use crate::store::{PoolRow, ProjectRow, Store, StoreError};
use crate::wake::Wake;
use faults::Faults;
use schedule::{Schedule, Subscription};

pub(crate) use address::Pushed;
pub(crate) use faults::Fault;
pub use secret::WebhookSecret;

/// Looks at once: each is a git process that mostly waits for the network.
const AT_ONCE: usize = 8;
/// How soon is noticed what the database says and nobody told of.
const NOTICE: Duration = Duration::from_secs(2);
/// BranchHeads of repositories that no project has any more are forgotten this often.
const FORGET: Duration = Duration::from_secs(60 * 60);

/// The watch. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Watch(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    mirrors: Mirrors,
    /// Wakes the pools' loop when a branch moved.
    wake: Wake,
    /// How long a fetch may take.
    fetch_timeout: Duration,
    schedule: Mutex<Schedule>,
    faults: Faults,
    /// The schedule has something new.
    told: Notify,
    /// A poll has ended.
    polled: Notify,
    /// Looks since the start.
    polls: AtomicU64,
}

impl Watch {
    /// Follows nothing until [`Watch::run`]. `interval`: time between two polls of a repository; `fetch_timeout`: how long a fetch may
    /// take.
    #[must_use]
    pub fn new(store: Store, mirrors: Mirrors, wake: Wake, interval: Duration, fetch_timeout: Duration) -> Self {
        Self(Arc::new(Inner {
            store,
            mirrors,
            wake,
            fetch_timeout,
            schedule: Mutex::new(Schedule::new(interval)),
            faults: Faults::default(),
            told: Notify::new(),
            polled: Notify::new(),
            polls: AtomicU64::new(0),
        }))
    }

    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        self.0.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn store(&self) -> &Store {
        &self.0.store
    }

    /// What keeps this branch from being followed: its repository cannot be polled, or has no such branch.
    #[must_use]
    pub fn fault(&self, remote: &Remote, branch: &str) -> Option<Fault> {
        self.0.faults.of(remote, branch)
    }

    /// Everything that cannot be followed now.
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        self.0.faults.all()
    }

    /// Looks at repositories since the start.
    #[must_use]
    pub fn polls(&self) -> u64 {
        self.0.polls.load(Ordering::Relaxed)
    }

    /// How many watched repositories a webhook concerns; it only asks.
    #[must_use]
    pub fn count(&self, pushed: &Pushed) -> usize {
        self.schedule().count(pushed)
    }

    /// A webhook says that a repository was pushed to: it is polled soon. How many watched repositories that are.
    pub fn hook(&self, pushed: &Pushed) -> usize {
        let count = self.schedule().hook(pushed, Instant::now());
        self.0.told.notify_one();
        count
    }

    /// A webhook came that there was no time to read: whatever it spoke of is polled soon.
    pub fn hook_unread(&self) {
        self.schedule().hook_unread(Instant::now());
        self.0.told.notify_one();
    }

    /// Follows what this project needs from now on, without waiting until it is noticed.
    pub fn follow(&self, project: &ProjectRow, pool: &PoolRow) {
        if pool.config.enabled {
            self.join(project, Some(pool), Instant::now());
        }
    }

    /// A project has other credentials now: what it follows is polled again, however often that failed before.
    pub fn credentials_changed(&self, project: &ProjectId) {
        self.schedule().again(project, Instant::now());
        self.0.told.notify_one();
    }

    fn join(&self, project: &ProjectRow, pool: Option<&PoolRow>, now: Instant) {
        let mut subscription = BTreeMap::new();
        add(&mut subscription, project, pool);
        if self.schedule().join(subscription, now) {
            self.0.told.notify_one();
        }
    }

    /// Until every webhook that came for this project is answered, and each branch that it needs was polled since it is
    /// followed, or the patience is over: what was pushed before is known then.
    pub async fn answer(&self, project: &ProjectRow, pool: Option<&PoolRow>, patience: Duration) {
        let now = Instant::now();
        self.join(project, pool, now);
        let project = &project.id;
        let answered = async {
            loop {
                let mut polled = std::pin::pin!(self.0.polled.notified());
                // Before the question: a poll that ends in between is not missed.
                polled.as_mut().enable();
                if !self.schedule().expedite(project, now) {
                    return;
                }
                self.0.told.notify_one();
                polled.await;
            }
        };
        if tokio::time::timeout(patience, answered).await.is_err() {
            tracing::warn!(%project, "its branches could not be polled in time: a strict claim goes by what is known");
        }
    }

    /// Watches until the server stops. What is under way then ends at once.
    pub async fn run(&self, stop: CancellationToken) {
        let mut polls = JoinSet::new();
        let (mut notice, mut forget) = (Instant::now(), Instant::now());
        loop {
            let now = Instant::now();
            if notice <= now {
                self.notice().await;
                notice = Instant::now() + NOTICE;
            }
            if forget <= now {
                self.forget().await;
                forget = now + FORGET;
            }
            let room = AT_ONCE - polls.len();
            for order in self.schedule().begin(Instant::now(), room) {
                polls.spawn(self.clone().poll(order));
            }
            let due = self.schedule().next_due().filter(|_| polls.len() < AT_ONCE);
            let next = due.map_or(notice, |due| due.min(notice));
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.0.told.notified() => {}
                Some(_) = polls.join_next() => {}
                () = tokio::time::sleep_until(next.into()) => {}
            }
        }
        polls.shutdown().await;
        let (polls, faults) = (self.polls(), self.faults().len());
        tracing::debug!(polls, faults, "branches are followed no longer");
    }

    /// Reads what enabled pools follow now.
    async fn notice(&self) {
        match self.subscription().await {
            Ok(subscription) => {
                let mut schedule = self.schedule();
                schedule.want(subscription, Instant::now());
                self.0.faults.keep(|remote, branch| schedule.follows(remote, branch));
            }
            Err(error) => tracing::error!(%error, "which branches to follow could not be read; it is tried again"),
        }
    }

    async fn subscription(&self) -> Result<BTreeMap<Remote, Subscription>, StoreError> {
        let mut all: BTreeMap<Remote, Subscription> = BTreeMap::new();
        for (project, pool) in self.store().enabled_pools().await? {
            add(&mut all, &project, Some(&pool));
        }
        Ok(all)
    }

    async fn forget(&self) {
        if let Err(error) = self.store().forget_branch_heads().await {
            tracing::warn!(%error, "heads of repositories that no project has could not be forgotten");
        }
    }
}

/// Adds what a project needs to what is wanted.
fn add(all: &mut BTreeMap<Remote, Subscription>, project: &ProjectRow, pool: Option<&PoolRow>) {
    for checkout in checkouts(project, pool) {
        let subscription = all.entry(checkout.remote()).or_default();
        subscription.followers.insert((project.id.clone(), checkout.branch));
        subscription.names.insert(checkout.repo_full_name);
    }
}
