//! The conditions of a pool: which are true, since when, and what to do about them. A new one is a variant, its
//! rule in [`is_so`] and its sentence in [`message`].

use hearth_api::counted::{count, times_in_a_row};
use hearth_api::explain::Condition;
use hearth_api::ids::InstanceId;
use hearth_api::instance::Unresponsive;
use hearth_core::plan::{BREAKER_AFTER, Backoff, Blocker, PoolSummary};
use hearth_core::state::FailureKind;
use hearth_core::world::{FailureStreak, InstanceWorld, PoolWorld};
use jiff::Timestamp;

use super::messages::{blocker_message, project_word, reason_in_short};
use crate::store::ProjectRow;

/// A condition of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Full,
    Fresh,
    Building,
    Rolling,
    RecipeFailing,
    BreakerOpen,
    CapacityLimited,
    HostTrouble,
    ImageMissing,
    RepositoryMissing,
    Disabled,
    DebugVmKept,
}

impl Kind {
    const ALL: [Self; 12] = [
        Self::Full,
        Self::Fresh,
        Self::Building,
        Self::Rolling,
        Self::RecipeFailing,
        Self::BreakerOpen,
        Self::CapacityLimited,
        Self::HostTrouble,
        Self::ImageMissing,
        Self::RepositoryMissing,
        Self::Disabled,
        Self::DebugVmKept,
    ];

    /// Its name in replies, which clients compare: it stays when the variant is renamed.
    fn as_str(self) -> &'static str {
        match self {
            Self::Full => "Full",
            Self::Fresh => "Fresh",
            Self::Building => "Building",
            Self::Rolling => "Rolling",
            Self::RecipeFailing => "RecipeFailing",
            Self::BreakerOpen => "BreakerOpen",
            Self::CapacityLimited => "CapacityLimited",
            Self::HostTrouble => "HostTrouble",
            Self::ImageMissing => "ImageMissing",
            Self::RepositoryMissing => "RepositoryMissing",
            Self::Disabled => "Disabled",
            Self::DebugVmKept => "DebugVmKept",
        }
    }
}

/// What a pool is explained from.
pub(super) struct Facts<'a> {
    pub project: &'a ProjectRow,
    /// A person has configured the pool.
    pub configured: bool,
    pub pool: &'a PoolWorld,
    pub summary: &'a PoolSummary<'a>,
    /// Why the target recipe differs from the one that serves.
    pub cause: Option<String>,
    /// What the boots under way are at.
    pub at_work: &'a [(InstanceId, String)],
    /// The newest instance that failed by the target recipe, and why: the step, the command and how it ended.
    pub failed: Option<(&'a InstanceId, &'a str)>,
    pub now: Timestamp,
}

/// Blockers of the last pass, and since when.
type Blockers = [(Blocker, Timestamp)];

/// Since when conditions are as they are. A cache: it starts again with the server.
#[derive(Debug, Default)]
pub(super) struct Since([Option<(bool, Timestamp)>; Kind::ALL.len()]);

impl Since {
    /// Notes how it is now.
    pub(super) fn note(&mut self, pool: &PoolWorld, summary: &PoolSummary<'_>, blockers: &Blockers, now: Timestamp) {
        for (kind, noted) in Kind::ALL.into_iter().zip(&mut self.0) {
            let status = is_so(kind, pool, summary, blockers);
            if noted.is_none_or(|(before, _)| before != status) {
                *noted = Some((status, now));
            }
        }
    }
}

fn is_so(kind: Kind, pool: &PoolWorld, summary: &PoolSummary<'_>, blockers: &Blockers) -> bool {
    let wanted = pool.streak;
    let misses = |kind| pool.enabled && wanted.recipe > 0 && wanted.last_kind == Some(kind);
    match kind {
        Kind::Full => pool.enabled && summary.ready >= pool.target,
        Kind::Fresh => summary.current == summary.ready && (summary.ready > 0 || (pool.target == 0 && pool.prepared)),
        Kind::Building => being_made(summary).next().is_some(),
        Kind::Rolling => pool.enabled && pool.prepared && summary.current < summary.ready,
        Kind::RecipeFailing => misses(FailureKind::Setup),
        Kind::BreakerOpen => breaker(summary).is_some(),
        Kind::CapacityLimited => capacity(blockers).is_some(),
        Kind::HostTrouble => pool.enabled && troubled(pool).is_some(),
        Kind::ImageMissing => misses(FailureKind::Image),
        Kind::RepositoryMissing => misses(FailureKind::Repository),
        Kind::Disabled => !pool.enabled,
        Kind::DebugVmKept => summary.kept.is_some(),
    }
}

/// Boots that run the set-up: a build of the target recipe, and test boots.
fn being_made<'a>(summary: &'a PoolSummary<'_>) -> impl Iterator<Item = &'a InstanceWorld> {
    summary.builds.into_iter().chain(summary.tests.iter().copied())
}

fn breaker<'a>(summary: &'a PoolSummary<'_>) -> Option<&'a Backoff> {
    let open = |pause: &&Backoff| matches!(pause.blocker, Blocker::BreakerOpen { .. });
    summary.backoffs.iter().find(open)
}

fn capacity(blockers: &Blockers) -> Option<Blocker> {
    let limits = |blocker: &Blocker| {
        matches!(
            blocker,
            Blocker::HostVms { .. } | Blocker::HostMemory { .. } | Blocker::TenantVms { .. } | Blocker::ProjectVms
        )
    };
    blockers.iter().map(|(blocker, _)| *blocker).find(limits)
}

/// Failures of this host with no success since, of the target recipe or of the one that serves.
fn troubled(pool: &PoolWorld) -> Option<FailureStreak> {
    let previous = pool.previous.as_ref().map(|last| last.streak);
    let streaks = [Some(pool.streak), previous].into_iter().flatten();
    streaks
        .filter(|streak| streak.host > 0)
        .max_by_key(|streak| streak.host)
}

/// Every condition, in order.
pub(super) fn all(facts: &Facts<'_>, blockers: &Blockers, since: &Since) -> Vec<Condition> {
    let kinds = Kind::ALL.into_iter().zip(since.0);
    kinds
        .map(|(kind, noted)| {
            let (status, since) = noted.unwrap_or((is_so(kind, facts.pool, facts.summary, blockers), facts.now));
            Condition {
                kind: kind.as_str().to_owned(),
                status,
                since,
                message: message(kind, status, facts, blockers),
            }
        })
        .collect()
}

fn message(kind: Kind, status: bool, facts: &Facts<'_>, blockers: &Blockers) -> String {
    if status {
        message_if_so(kind, facts, blockers)
    } else {
        message_if_not(kind, facts)
    }
}

fn message_if_so(kind: Kind, facts: &Facts<'_>, blockers: &Blockers) -> String {
    let (pool, summary, project) = (facts.pool, facts.summary, project_word(facts.project));
    match kind {
        Kind::Full => format!(
            "{} of {} {} ready",
            summary.ready,
            pool.target,
            is_or_are(summary.ready)
        ),
        Kind::Fresh => "everything that is ready is of the target recipe".to_owned(),
        Kind::Building => {
            let boots = being_made(summary).map(|boot| {
                let id = &boot.id;
                let at_work = facts.at_work.iter().find(|(at_work, _)| at_work == id);
                let at_work = at_work.map(|(_, text)| format!(" ({text})")).unwrap_or_default();
                let what = if boot.purpose.is_test() {
                    format!("the test boot {id} is under way{at_work}")
                } else {
                    format!("the target recipe {} is being set up by {id}{at_work}", pool.recipe)
                };
                format!(
                    "{what}; watch it with `hearth pool instance {project} {id} --follow`, end it with `hearth pool cancel {project} {id}`"
                )
            });
            boots.collect::<Vec<_>>().join("; ")
        }
        Kind::Rolling => format!(
            "{} of {} {} of the target recipe; the others are replaced one by one",
            summary.current,
            count(summary.ready, "ready VM"),
            is_or_are(summary.current)
        ),
        Kind::RecipeFailing => format!("{}; {}; {}", failing(facts), serving_instead(facts), look_into(facts)),
        Kind::BreakerOpen => {
            let until = breaker(summary).map_or(facts.now, |pause| pause.until);
            format!(
                "after {} in a row{} it is tried again at {}; mend the set-up, or try at once with `hearth pool retry {project}`",
                count(pool.streak.recipe.max(BREAKER_AFTER), "failure"),
                failed_why(facts),
                clock(until)
            )
        }
        Kind::CapacityLimited => capacity(blockers).map(blocker_message).unwrap_or_default(),
        Kind::HostTrouble => {
            let failures = troubled(pool).unwrap_or_default().host;
            let why = failed_why(facts);
            format!(
                "this host failed {}{why}; it is tried again by itself, `hearth doctor` shows what this host lacks",
                times_in_a_row(failures)
            )
        }
        Kind::ImageMissing | Kind::RepositoryMissing => {
            let advice = if kind == Kind::ImageMissing {
                "see `hearth image list` on the server and the project's `image`"
            } else {
                "see the project's repositories and branch, and what the server's user may fetch"
            };
            format!(
                "{}; it is tried again by itself, or at once with `hearth pool retry {project}`; {advice}",
                failing(facts)
            )
        }
        Kind::Disabled if facts.configured => {
            format!("no VMs are kept ready; `hearth pool set {project} --enabled` changes that")
        }
        Kind::Disabled => {
            format!("the project has no pool yet; `hearth pool set {project} --enabled --target 1` makes one")
        }
        Kind::DebugVmKept => {
            let Some((kept, until)) = summary.kept else {
                return String::new();
            };
            let id = &kept.id;
            format!(
                "the VM of {id}, whose set-up failed, is kept until {}; see inside with `hearth shell {id}`",
                clock(until)
            )
        }
    }
}

fn message_if_not(kind: Kind, facts: &Facts<'_>) -> String {
    let (pool, summary) = (facts.pool, facts.summary);
    match kind {
        Kind::Full if !pool.enabled => "the pool is disabled".to_owned(),
        Kind::Full => counts(facts),
        Kind::Fresh if summary.ready == 0 => "nothing is ready".to_owned(),
        Kind::Fresh => format!(
            "{} of {} {} of an older recipe",
            summary.ready - summary.current,
            count(summary.ready, "ready VM"),
            is_or_are(summary.ready - summary.current)
        ),
        Kind::Building => "nothing is being set up".to_owned(),
        Kind::Rolling => "no ready VM waits for its successor".to_owned(),
        Kind::RecipeFailing => "the last try of the target recipe, if there was one, did not fail".to_owned(),
        Kind::BreakerOpen => "failures of the set-up do not delay anything".to_owned(),
        Kind::CapacityLimited => "no limit of this host or of the project keeps VMs from being made".to_owned(),
        Kind::HostTrouble => "this host did not fail".to_owned(),
        Kind::ImageMissing => "no image is known to be missing".to_owned(),
        Kind::RepositoryMissing => "no repository is known to be missing".to_owned(),
        Kind::Disabled => "VMs are kept ready".to_owned(),
        Kind::DebugVmKept => "no failed VM is kept".to_owned(),
    }
}

/// VMs that are there and do not answer, while there are some.
pub(super) fn unresponsive(silent: &[(InstanceId, Unresponsive)]) -> Option<Condition> {
    let since = silent.iter().map(|(_, silent)| silent.since).min()?;
    let each = silent
        .iter()
        .map(|(id, Unresponsive { since, reason })| format!("{id} does not answer since {}: {reason}", clock(*since)));
    Some(Condition {
        kind: "Unresponsive".to_owned(),
        status: true,
        since,
        message: format!(
            "{}; a claimed one is its owner's to release (`hearth release ID`), the others go by themselves",
            each.collect::<Vec<_>>().join("; ")
        ),
    })
}

/// The summary.
pub(super) fn summary(facts: &Facts<'_>, blockers: &Blockers) -> String {
    let (pool, summary) = (facts.pool, facts.summary);
    let so = |kind| is_so(kind, pool, summary, blockers);
    let fails = [Kind::RecipeFailing, Kind::ImageMissing, Kind::RepositoryMissing];
    if so(Kind::Disabled) {
        let message = message_if_so(Kind::Disabled, facts, blockers);
        return format!("the pool is disabled: {message}");
    }
    if fails.into_iter().any(so) {
        return format!("{}; {}; {}", failing(facts), serving_instead(facts), look_into(facts));
    }
    let full = so(Kind::Full);
    let obstacle = [Kind::HostTrouble, Kind::CapacityLimited]
        .into_iter()
        .find(|kind| so(*kind));
    match obstacle {
        Some(kind) if !full => format!("{}: {}", counts(facts), message_if_so(kind, facts, blockers)),
        _ if so(Kind::Rolling) => format!(
            "{}, {} of the target recipe; the others are replaced one by one",
            counts(facts),
            summary.current
        ),
        _ if summary.current < summary.ready => {
            format!(
                "{}, of the recipe before; the target recipe is to be set up first",
                counts(facts)
            )
        }
        _ if summary.ready > 0 => format!("{}, all of the target recipe", counts(facts)),
        _ => counts(facts),
    }
}

fn counts(facts: &Facts<'_>) -> String {
    let summary = facts.summary;
    let ready = format!("{} of {} ready", summary.ready, facts.pool.target);
    match summary.making {
        0 => ready,
        making => format!("{ready}, {making} being made"),
    }
}

/// What fails, since what, and why.
fn failing(facts: &Facts<'_>) -> String {
    let what = match facts.pool.streak.last_kind {
        Some(FailureKind::Repository) => "a repository cannot be had",
        Some(FailureKind::Image) => "the image cannot be had",
        _ => "the set-up fails",
    };
    let cause = facts
        .cause
        .as_deref()
        .map(|cause| format!(" {cause}"))
        .unwrap_or_default();
    format!("{what}{cause}{}", failed_why(facts))
}

/// ` (why the newest failure failed)`.
fn failed_why(facts: &Facts<'_>) -> String {
    let failed = facts.failed.map(|(_, why)| format!(" ({})", reason_in_short(why)));
    failed.unwrap_or_default()
}

fn serving_instead(facts: &Facts<'_>) -> String {
    let older = facts.summary.ready - facts.summary.current;
    let of_before = |older: usize| {
        let keep = if older == 1 { "keeps" } else { "keep" };
        format!("{} of the recipe before {keep} serving", count(older, "VM"))
    };
    match (older, facts.summary.current) {
        (0, 0) if facts.pool.previous.is_some() => "the recipe before keeps serving".to_owned(),
        (0, 0) => "nothing is ready".to_owned(),
        (0, ready) => format!("{ready} ready"),
        (older, _) => of_before(older),
    }
}

fn look_into(facts: &Facts<'_>) -> String {
    let project = project_word(facts.project);
    match facts.failed {
        Some((id, _)) => format!("`hearth pool instance {project} {id} --log` shows why"),
        None => format!("`hearth pool test {project}` shows why"),
    }
}

fn is_or_are(count: usize) -> &'static str {
    if count == 1 { "is" } else { "are" }
}

fn clock(at: Timestamp) -> String {
    format!("{at:.0}")
}

#[cfg(test)]
mod tests {
    use hearth_api::explain::Condition;
    use utoipa::PartialSchema as _;

    use super::Kind;

    #[test]
    fn names_of_conditions_are_pinned_and_documented() {
        let names = Kind::ALL.map(Kind::as_str);
        let pinned = [
            "Full",
            "Fresh",
            "Building",
            "Rolling",
            "RecipeFailing",
            "BreakerOpen",
            "CapacityLimited",
            "HostTrouble",
            "ImageMissing",
            "RepositoryMissing",
            "Disabled",
            "DebugVmKept",
        ];
        assert_eq!(names, pinned);
        let schema = serde_json::to_value(Condition::schema()).unwrap();
        let documented = schema["properties"]["type"]["description"].as_str().unwrap();
        for name in names {
            assert!(documented.contains(&format!("`{name}`")), "{name}: {documented}");
        }
    }
}
