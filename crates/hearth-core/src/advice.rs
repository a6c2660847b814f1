//! What another target size would have meant: recorded claims replayed against a pool that is filled as fast as it was.
//!
//! The model is a pool of one recipe: a claim takes a ready VM, or the next one that is made when none is ready, first come, first served; for
//! each VM that was taken one is ordered, and so many are made at a time. What the model leaves out: pushes, failures, other pools of the host.

use std::collections::{BinaryHeap, VecDeque};

use jiff::{SignedDuration, Timestamp};

/// Largest target that is suggested.
pub const MOST: usize = 50;
/// Share of claims that get a ready VM with the suggested target.
pub const GOAL: f64 = 0.95;

/// How a pool is filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filling {
    /// How long a VM takes to be made.
    pub refill: SignedDuration,
    /// VMs that are made at a time.
    pub at_once: usize,
}

/// What a target would have meant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    pub target: usize,
    pub claims: usize,
    /// Claims that found a ready VM.
    pub warm: usize,
    /// The wait that 95 of 100 claims did not exceed.
    pub p95_wait: SignedDuration,
    /// Hours that VMs waited ready, all together.
    pub vm_hours: f64,
}

impl Outcome {
    /// Share of the claims that found a ready VM; all when there was none.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts of claims are small")]
    pub fn hit_rate(&self) -> f64 {
        if self.claims == 0 {
            return 1.0;
        }
        self.warm as f64 / self.claims as f64
    }
}

/// Replays claims, in order of their times, from `since` until `until`, against a pool with this target that is full when it begins.
#[must_use]
pub fn replay(claims: &[Timestamp], since: Timestamp, until: Timestamp, target: usize, filling: Filling) -> Outcome {
    let mut pool = Pool {
        ready: target,
        counted_to: since,
        ready_seconds: 0.0,
        waiting: VecDeque::new(),
        made_at: BinaryHeap::new(),
        free_at: BinaryHeap::from(vec![std::cmp::Reverse(since); filling.at_once.max(1)]),
        waits: Vec::with_capacity(claims.len()),
        warm: 0,
    };
    for &at in claims.iter().filter(|at| (since..until).contains(*at)) {
        pool.make_until(at);
        pool.claim(at, filling.refill);
    }
    pool.make_until(until);
    pool.count_to(until);
    // Those that wait for ever here would have had a VM after the end.
    while pool.waiting.front().is_some() {
        match pool.made_at.pop() {
            Some(std::cmp::Reverse(at)) => pool.made(at),
            None => break,
        }
    }
    pool.waits.sort_unstable();
    let place = (pool.waits.len() * 95).div_ceil(100).saturating_sub(1);
    Outcome {
        target,
        claims: pool.waits.len(),
        warm: pool.warm,
        p95_wait: pool.waits.get(place).copied().unwrap_or_default(),
        vm_hours: pool.ready_seconds / 3600.0,
    }
}

/// The smallest target with which enough claims find a ready VM; the largest that is tried when none does.
#[must_use]
pub fn suggest(claims: &[Timestamp], since: Timestamp, until: Timestamp, filling: Filling) -> Outcome {
    let mut tried = (1..=MOST).map(|target| replay(claims, since, until, target, filling));
    let enough = tried.find(|outcome| outcome.hit_rate() >= GOAL);
    enough.unwrap_or_else(|| replay(claims, since, until, MOST, filling))
}

struct Pool {
    ready: usize,
    counted_to: Timestamp,
    /// Seconds that VMs were ready, all together.
    ready_seconds: f64,
    /// When those came that wait.
    waiting: VecDeque<Timestamp>,
    /// When what is being made is there.
    made_at: BinaryHeap<std::cmp::Reverse<Timestamp>>,
    /// When each of those that make VMs is free.
    free_at: BinaryHeap<std::cmp::Reverse<Timestamp>>,
    waits: Vec<SignedDuration>,
    warm: usize,
}

impl Pool {
    #[expect(clippy::cast_precision_loss, reason = "a pool has few VMs")]
    fn count_to(&mut self, at: Timestamp) {
        self.ready_seconds += self.ready as f64 * at.duration_since(self.counted_to).as_secs_f64();
        self.counted_to = at;
    }

    fn make_until(&mut self, at: Timestamp) {
        while self.made_at.peek().is_some_and(|next| next.0 <= at) {
            if let Some(std::cmp::Reverse(next)) = self.made_at.pop() {
                self.made(next);
            }
        }
    }

    fn made(&mut self, at: Timestamp) {
        match self.waiting.pop_front() {
            Some(came) => self.waits.push(at.duration_since(came)),
            None => {
                self.count_to(at);
                self.ready += 1;
            }
        }
    }

    fn claim(&mut self, at: Timestamp, refill: SignedDuration) {
        if self.ready > 0 {
            self.count_to(at);
            self.ready -= 1;
            self.warm += 1;
            self.waits.push(SignedDuration::ZERO);
        } else {
            self.waiting.push_back(at);
        }
        // One is ordered for each that is taken.
        if let Some(std::cmp::Reverse(free)) = self.free_at.pop() {
            let made = free.max(at).checked_add(refill).unwrap_or(Timestamp::MAX);
            self.free_at.push(std::cmp::Reverse(made));
            self.made_at.push(std::cmp::Reverse(made));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn filling(seconds: i64, at_once: usize) -> Filling {
        Filling {
            refill: SignedDuration::from_secs(seconds),
            at_once,
        }
    }

    #[test]
    fn a_burst_is_served_by_as_many_as_are_ready_and_the_rest_waits_for_what_is_made() {
        let burst = [at(100), at(100), at(100)];
        let outcome = replay(&burst, at(0), at(3600), 2, filling(10, 1));
        // The third waits for the first of three that are made one after another.
        assert_eq!((outcome.claims, outcome.warm), (3, 2));
        assert_eq!(outcome.p95_wait, SignedDuration::from_secs(10));
        // Two for 100 s, none until 120 s (the first made is taken), one until 130 s, two from then on.
        assert!(
            (outcome.vm_hours * 3600.0 - (200.0 + 10.0 + 2.0 * 3470.0)).abs() < 1e-6,
            "{outcome:?}"
        );
    }

    #[test]
    fn a_larger_target_never_serves_fewer_and_costs_more() {
        let claims: Vec<Timestamp> = (0..200).map(|i| at(1000 + i * i % 977 * 7)).collect();
        let mut claims = claims;
        claims.sort_unstable();
        let outcomes: Vec<Outcome> = (1..20)
            .map(|target| replay(&claims, at(0), at(10_000), target, filling(30, 2)))
            .collect();
        for pair in outcomes.windows(2) {
            assert!(
                pair[0].warm <= pair[1].warm && pair[0].p95_wait >= pair[1].p95_wait,
                "{pair:?}"
            );
            assert!(pair[0].vm_hours <= pair[1].vm_hours, "{pair:?}");
        }
        let suggested = suggest(&claims, at(0), at(10_000), filling(30, 2));
        assert!(suggested.hit_rate() >= GOAL || suggested.target == MOST);
        let smaller = replay(&claims, at(0), at(10_000), suggested.target - 1, filling(30, 2));
        assert!(suggested.target == 1 || smaller.hit_rate() < GOAL);
    }

    #[test]
    fn without_claims_the_smallest_pool_is_enough() {
        let outcome = suggest(&[], at(0), at(7200), filling(30, 2));
        assert_eq!(
            (outcome.target, outcome.claims, outcome.p95_wait),
            (1, 0, SignedDuration::ZERO)
        );
        assert!((outcome.hit_rate() - 1.0).abs() < f64::EPSILON && (outcome.vm_hours - 2.0).abs() < 1e-9);
    }
}
