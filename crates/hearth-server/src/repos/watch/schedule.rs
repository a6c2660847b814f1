//! When each repository is polled. Pure: what time it is and how the dice of the jitter fell is given.
//!
//! A poll is due when its pause is over, or, while webhooks for it are unanswered, when they have been quiet for a moment; at
//! once when somebody follows it who did not before.
//! Pauses are never of the same length: polls that fell together once (a start of the server) would fall together for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use hearth_api::ids::ProjectId;
use hearth_core::checkout::Remote;

use super::address::{Pushed, RepoAddress};

/// A webhook is answered with a poll when no other has come for so long: a push of many branches sends many.
const QUIET: Duration = Duration::from_millis(1500);
/// … but at the latest so long after the first, however busy the repository is.
const LONGEST_QUIET: Duration = Duration::from_secs(120);
/// Pause after the first poll that failed, if the ordinary one is not shorter; it doubles with each that follows.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// Longest pause after failures.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// A pause is at most this share shorter than it is called.
const JITTER: f64 = 0.2;

/// Who wants a repository, and what of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Subscription {
    /// Projects and the branches that they follow.
    pub(super) followers: BTreeSet<(ProjectId, String)>,
    /// What projects call it: `org/name`.
    pub(super) names: BTreeSet<String>,
}

impl Subscription {
    pub(super) fn branches(&self) -> BTreeSet<&str> {
        self.followers.iter().map(|(_, branch)| branch.as_str()).collect()
    }

    /// What to call it in a sentence.
    pub(super) fn name(&self) -> &str {
        self.names.first().map_or("the repository", String::as_str)
    }
}

/// A poll that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) remote: Remote,
    pub(super) subscription: Subscription,
}

#[derive(Debug)]
struct Repo {
    subscription: Subscription,
    address: Option<RepoAddress>,
    /// When the pause is over.
    next: Option<Instant>,
    /// When the first and the last unanswered question came: a webhook, or a follower that no poll has served yet.
    asked: Option<(Instant, Instant)>,
    /// Looks in a row that failed.
    failures: u32,
    is_polling: bool,
    /// When the first of the questions came that the poll under way answers.
    answers: Option<Instant>,
    /// A follower is new: its poll does not wait until webhooks are quiet.
    has_news: bool,
    /// Somebody waits for the answer: it goes before all others.
    is_expedited: bool,
}

impl Repo {
    fn of(remote: &Remote) -> Self {
        Self {
            subscription: Subscription::default(),
            address: RepoAddress::of(&remote.url),
            next: None,
            asked: None,
            failures: 0,
            is_polling: false,
            answers: None,
            has_news: false,
            is_expedited: false,
        }
    }

    fn ask(&mut self, now: Instant) {
        self.asked = Some((self.asked.map_or(now, |(first, _)| first), now));
    }

    /// Whether an answer is due or under way.
    fn has_open_request(&self) -> bool {
        self.is_polling || self.asked.is_some()
    }

    /// More followers. It is asked for those that it does not have yet; whether there are any.
    fn join(&mut self, more: Subscription, now: Instant) -> bool {
        let has_news = !more.followers.is_subset(&self.subscription.followers);
        if has_news {
            self.ask(now);
            self.has_news = true;
        }
        self.subscription.followers.extend(more.followers);
        self.subscription.names.extend(more.names);
        has_news
    }

    fn due(&self) -> Option<Instant> {
        if self.is_polling {
            return None;
        }
        match self.asked {
            Some((first, _)) if self.is_expedited || self.has_news => Some(first),
            Some((first, last)) => Some((last + QUIET).min(first + LONGEST_QUIET)),
            None => self.next,
        }
    }
}

/// All repositories that are watched.
#[derive(Debug)]
pub(super) struct Schedule {
    /// Zero: no poll but for a webhook or a new follower.
    interval: Duration,
    repos: BTreeMap<Remote, Repo>,
}

impl Schedule {
    pub(super) fn new(interval: Duration) -> Self {
        let repos = BTreeMap::new();
        Self { interval, repos }
    }

    /// What is wanted now. A new follower is polled for without delay. Who is gone is forgotten, but
    /// not before a question is answered: it may be asked by somebody who does not follow for long.
    pub(super) fn want(&mut self, all: BTreeMap<Remote, Subscription>, now: Instant) {
        self.repos.retain(|remote, repo| match all.get(remote) {
            _ if repo.has_open_request() => true,
            None => false,
            Some(subscription) => {
                repo.subscription
                    .followers
                    .retain(|it| subscription.followers.contains(it));
                repo.subscription.names.clear();
                true
            }
        });
        self.join(all, now);
    }

    /// One project wants this now, beside all others; whether a poll is due for it.
    pub(super) fn join(&mut self, all: BTreeMap<Remote, Subscription>, now: Instant) -> bool {
        let mut has_news = false;
        for (remote, subscription) in all {
            let repo = self.repos.entry(remote).or_insert_with_key(Repo::of);
            has_news |= repo.join(subscription, now);
        }
        has_news
    }

    pub(super) fn follows(&self, remote: &Remote, branch: Option<&str>) -> bool {
        self.repos
            .get(remote)
            .is_some_and(|repo| branch.is_none_or(|branch| repo.subscription.branches().contains(branch)))
    }

    /// How many repositories a push concerns.
    pub(super) fn count(&self, pushed: &Pushed) -> usize {
        self.repos.values().filter(|repo| is_meant(repo, pushed)).count()
    }

    /// A webhook came: how many repositories it concerns.
    pub(super) fn hook(&mut self, pushed: &Pushed, now: Instant) -> usize {
        self.mark(now, |repo| is_meant(repo, pushed))
    }

    /// A webhook came that nobody read: it may concern any.
    pub(super) fn hook_unread(&mut self, now: Instant) {
        self.mark(now, |_| true);
    }

    /// What this project follows may be readable now that was not: asks for looks at once, whatever pause was left.
    pub(super) fn again(&mut self, project: &ProjectId, now: Instant) {
        self.mark(now, |repo| {
            repo.subscription
                .followers
                .iter()
                .any(|(follower, _)| follower == project)
        });
        self.expedite(project, now);
    }

    fn mark(&mut self, now: Instant, is_meant: impl Fn(&Repo) -> bool) -> usize {
        let meant = self.repos.values_mut().filter(|repo| is_meant(repo));
        meant.map(|repo| repo.ask(now)).count()
    }

    /// Whether questions that came until then, for repositories that this project follows, are unanswered; the polls that answer
    /// them are due at once and before others.
    pub(super) fn expedite(&mut self, project: &ProjectId, until: Instant) -> bool {
        let follows = |repo: &Repo| {
            repo.subscription
                .followers
                .iter()
                .any(|(follower, _)| follower == project)
        };
        let mut unanswered = false;
        for repo in self.repos.values_mut().filter(|repo| follows(repo)) {
            let came = |first: Instant| first <= until;
            let waits = repo.asked.is_some_and(|(first, _)| came(first));
            repo.is_expedited |= waits;
            unanswered |= waits || repo.answers.is_some_and(came);
        }
        unanswered
    }

    /// Begins polls that are due, at most `room`: those that somebody waits for, then the longest overdue.
    pub(super) fn begin(&mut self, now: Instant, room: usize) -> Vec<Order> {
        let due = |repo: &Repo| repo.due().filter(|due| *due <= now);
        let mut ready: Vec<_> = self
            .repos
            .iter_mut()
            .filter_map(|(remote, repo)| Some((due(repo)?, remote, repo)))
            .collect();
        ready.sort_by_key(|(due, _, repo)| (!repo.is_expedited, *due));
        ready.truncate(room);
        ready
            .into_iter()
            .map(|(_, remote, repo)| {
                repo.answers = repo.asked.take().map(|(first, _)| first);
                (repo.is_polling, repo.next) = (true, None);
                (repo.has_news, repo.is_expedited) = (false, false);
                let (remote, subscription) = (remote.clone(), repo.subscription.clone());
                Order { remote, subscription }
            })
            .collect()
    }

    /// When the next poll is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.repos.values().filter_map(Repo::due).min()
    }

    /// A poll has ended. `luck`: from 0 to 1.
    pub(super) fn ended(&mut self, remote: &Remote, has_failed: bool, now: Instant, luck: f64) {
        let Some(repo) = self.repos.get_mut(remote) else {
            return;
        };
        (repo.is_polling, repo.answers) = (false, None);
        repo.failures = if has_failed { repo.failures.saturating_add(1) } else { 0 };
        let pause = match repo.failures {
            0 if self.interval.is_zero() => None,
            0 => Some(self.interval),
            failures => Some(backoff_after(failures, self.interval)),
        };
        repo.next = pause.map(|pause| now + pause.mul_f64(1.0 - JITTER * luck));
    }
}

fn is_meant(repo: &Repo, pushed: &Pushed) -> bool {
    pushed.is_at(repo.address.as_ref()) || repo.subscription.names.iter().any(|name| pushed.is_called(name))
}

fn backoff_after(failures: u32, interval: Duration) -> Duration {
    let first = if interval.is_zero() {
        FIRST_PAUSE
    } else {
        FIRST_PAUSE.min(interval)
    };
    let doubled = 2_u32
        .checked_pow(failures - 1)
        .and_then(|times| first.checked_mul(times));
    doubled.map_or(LONGEST_PAUSE, |pause| pause.min(LONGEST_PAUSE))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn remote(url: &str) -> Remote {
        Remote {
            tenant: "t".to_owned(),
            project: None,
            url: url.to_owned(),
        }
    }

    fn app() -> Remote {
        remote("https://h/acme/app")
    }

    const MINUTE: Duration = Duration::from_secs(60);

    fn subscription(followers: &[(&str, &str)]) -> BTreeMap<Remote, Subscription> {
        let followers = followers
            .iter()
            .map(|(project, branch)| (project.parse().unwrap(), (*branch).to_owned()))
            .collect();
        let names = BTreeSet::from(["acme/app".to_owned()]);
        BTreeMap::from([(app(), Subscription { followers, names })])
    }

    fn push() -> Pushed {
        let body = json!({ "repository": { "full_name": "acme/app" } });
        Pushed::read(body.as_object().unwrap())
    }

    fn watching(interval: Duration, now: Instant) -> Schedule {
        let mut schedule = Schedule::new(interval);
        schedule.want(subscription(&[("prj_1", "main")]), now);
        schedule
    }

    /// After the first poll.
    fn seen(interval: Duration, now: Instant) -> Schedule {
        let mut schedule = watching(interval, now);
        assert_eq!(schedule.begin(now, 8).len(), 1);
        schedule.ended(&app(), false, now, 0.0);
        schedule
    }

    #[test]
    fn a_new_follower_is_looked_at_once_and_then_once_per_interval() {
        let now = Instant::now();
        let mut schedule = watching(MINUTE, now);
        assert_eq!(schedule.begin(now, 8).len(), 1);
        assert_eq!(schedule.begin(now, 8).len(), 0, "one look at a time");
        schedule.ended(&app(), false, now, 0.0);
        schedule.want(subscription(&[("prj_1", "main")]), now);
        assert_eq!(schedule.next_due(), Some(now + MINUTE));
        // Another branch, and another project with a branch that is known.
        for more in [("prj_1", "dev"), ("prj_2", "main")] {
            schedule.want(subscription(&[("prj_1", "main"), more]), now);
            assert_eq!(schedule.begin(now, 8).len(), 1, "{more:?}");
            schedule.ended(&app(), false, now, 1.0);
            assert_eq!(schedule.next_due(), Some(now + MINUTE.mul_f64(0.8)));
        }
        // One that comes during a poll.
        let later = now + MINUTE;
        assert_eq!(schedule.begin(later, 8).len(), 1);
        schedule.want(subscription(&[("prj_3", "main")]), later);
        schedule.ended(&app(), false, later, 0.5);
        assert_eq!(schedule.begin(later, 8).len(), 1);
        schedule.want(BTreeMap::new(), later);
        schedule.ended(&app(), false, later, 0.5);
        schedule.want(BTreeMap::new(), later);
        assert_eq!(schedule.next_due(), None);
    }

    #[test]
    fn who_joins_is_answered_by_a_look_of_its_own_and_need_not_stay() {
        let now = Instant::now();
        let (mut schedule, guest) = (seen(Duration::ZERO, now), "prj_2".parse().unwrap());
        assert!(!schedule.expedite(&guest, now));
        assert!(
            !schedule.join(subscription(&[("prj_1", "main")]), now),
            "it follows it already"
        );
        assert!(schedule.join(subscription(&[("prj_2", "main")]), now));
        let mut others = subscription(&[("prj_1", "main")]);
        others.insert(remote("https://h/acme/lib"), others[&app()].clone());
        schedule.want(others.clone(), now);
        assert!(
            schedule.expedite(&guest, now),
            "whoever reads what is wanted does not forget it"
        );
        assert_eq!(schedule.begin(now, 1)[0].remote, app(), "somebody waits for it");
        schedule.want(others.clone(), now);
        assert!(schedule.expedite(&guest, now), "the look is under way");
        schedule.ended(&app(), false, now, 0.0);
        assert!(!schedule.expedite(&guest, now));
        schedule.want(others, now);
        schedule.begin(now, 8);
        assert_eq!(schedule.hook(&push(), now), 2);
        assert!(!schedule.expedite(&guest, now), "it does not follow it any more");
    }

    #[test]
    fn hooks_are_answered_when_they_are_quiet_and_at_the_latest_after_two_minutes() {
        let start = Instant::now();
        let mut schedule = seen(Duration::ZERO, start);
        assert_eq!(schedule.next_due(), None, "without an interval only hooks count");
        assert_eq!(schedule.hook(&push(), start), 1);
        assert_eq!(schedule.next_due(), Some(start + QUIET));
        // A thousand in a minute: one poll at the end. Three minutes of them: one in between.
        for (minutes, subscription) in [(1, 1), (3, 2)] {
            let (mut now, mut polls) = (start, 0);
            for number in 0..1000 * minutes {
                now = start + Duration::from_millis(60 * number);
                schedule.hook(&push(), now);
                if !schedule.begin(now, 8).is_empty() {
                    polls += 1;
                    schedule.ended(&app(), false, now, 0.0);
                }
            }
            let end = now + QUIET;
            polls += schedule.begin(end, 8).len();
            schedule.ended(&app(), false, end, 0.0);
            assert_eq!(polls, subscription, "{minutes}");
            assert_eq!(schedule.next_due(), None);
        }
    }

    #[test]
    fn the_timed_look_waits_for_hooks_and_a_hook_during_a_look_counts() {
        let start = Instant::now();
        let mut schedule = seen(MINUTE, start);
        schedule.hook(&push(), start);
        assert!(schedule.begin(start, 8).is_empty());
        let now = start + QUIET;
        assert_eq!(schedule.begin(now, 8).len(), 1);
        schedule.hook(&push(), now);
        schedule.hook_unread(now);
        schedule.ended(&app(), false, now, 0.0);
        assert_eq!(schedule.next_due(), Some(now + QUIET));
        let body = json!({ "repository": { "full_name": "acme/other" } });
        assert_eq!(schedule.hook(&Pushed::read(body.as_object().unwrap()), now), 0);
    }

    #[test]
    fn who_needs_the_answer_does_not_wait_until_hooks_are_quiet() {
        let now = Instant::now();
        let later = now + Duration::from_millis(1);
        let (mut schedule, project) = (seen(Duration::ZERO, now), "prj_1".parse().unwrap());
        assert!(!schedule.expedite(&project, now), "no hook came");
        schedule.hook(&push(), now);
        assert!(
            !schedule.expedite(&"prj_2".parse().unwrap(), now),
            "it follows something else"
        );
        assert_eq!(schedule.next_due(), Some(now + QUIET));
        assert!(schedule.expedite(&project, now));
        assert_eq!(schedule.begin(now, 8).len(), 1);
        schedule.hook(&push(), later);
        assert!(schedule.expedite(&project, now), "the look is under way");
        schedule.ended(&app(), false, later, 0.0);
        assert!(!schedule.expedite(&project, now), "what came later does not concern it");
        assert_eq!(schedule.next_due(), Some(later + QUIET));
        assert!(schedule.expedite(&project, later));
        assert_eq!(schedule.begin(later, 8).len(), 1);
        schedule.ended(&app(), false, later, 0.0);
        assert!(!schedule.expedite(&project, later));
    }

    #[test]
    fn pauses_after_failures_grow_to_ten_minutes() {
        let pause = |failures| backoff_after(failures, MINUTE).as_secs();
        assert_eq!(
            (pause(1), pause(2), pause(7), pause(8), pause(u32::MAX)),
            (5, 10, 320, 600, 600)
        );
        assert_eq!(backoff_after(1, Duration::from_secs(1)), Duration::from_secs(1));
        assert_eq!(backoff_after(1, Duration::ZERO), FIRST_PAUSE);
        let start = Instant::now();
        let mut schedule = watching(MINUTE, start);
        schedule.begin(start, 8);
        schedule.ended(&app(), true, start, 1.0);
        assert_eq!(schedule.next_due(), Some(start + Duration::from_secs(4)));
    }

    #[test]
    fn no_more_looks_begin_than_there_is_room_for() {
        let now = Instant::now();
        let mut schedule = Schedule::new(MINUTE);
        let all = subscription(&[("prj_1", "main")]);
        let many = (0..20)
            .map(|at| (remote(&format!("https://h/{at}")), all[&app()].clone()))
            .collect();
        schedule.want(many, now);
        assert_eq!(schedule.begin(now, 8).len(), 8);
        assert_eq!(schedule.begin(now, 0).len(), 0);
        assert_eq!(schedule.begin(now, 20).len(), 12);
    }
}
