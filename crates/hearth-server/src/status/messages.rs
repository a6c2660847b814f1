//! What the planner decides, as messages for people.

use hearth_api::counted::{count, times, times_in_a_row};
use hearth_core::checkout::Checkout;
use hearth_core::plain_text::clause;
use hearth_core::plan::{Blocker, Reason};
use hearth_core::recipe::same_set_up;
use hearth_core::state::FailureKind;
use hearth_core::world::PoolWorld;
use jiff::Timestamp;

use crate::store::{BranchHeads, ProjectRow, TemplateRow};

/// As much of a commit as git shows.
const SHORT_COMMIT_CHARS: usize = 7;
/// As much of a line of a failure's reason as fits into a sentence.
const MAX_REASON_CHARS: usize = 160;

/// Whether only the figures differ.
pub(super) fn same_kind(one: Blocker, other: Blocker) -> bool {
    std::mem::discriminant(&one) == std::mem::discriminant(&other)
}

/// What holds a pool back.
pub fn blocker_message(blocker: Blocker) -> String {
    match blocker {
        Blocker::HostVms { max } => {
            format!(
                "this host has {} and may have no more (`hearth serve --max-vms`)",
                count(max, "VM")
            )
        }
        Blocker::HostMemory {
            wants_mib,
            left_mib,
            kept_mib: 0,
        } => format!(
            "one more VM takes {wants_mib} MiB of memory and {left_mib} MiB are left of what VMs may have on this host \
             (`hearth serve --memory`)"
        ),
        Blocker::HostMemory {
            wants_mib,
            left_mib,
            kept_mib,
        } => format!(
            "one more VM takes {wants_mib} MiB of memory; {left_mib} MiB are left of what VMs may have on this host \
             (`hearth serve --memory`), and {kept_mib} MiB stay free so that what is pushed can be set up"
        ),
        Blocker::TenantVms { max } => format!(
            "the projects of this tenant have {} together and may have no more (`hearth serve --max-vms-per-tenant`)",
            count(max, "VM")
        ),
        Blocker::ProjectVms => "the project has as many VMs as its own limit allows (`maxVms`)".to_owned(),
        Blocker::InTheMaking => "as many VMs are in the making as may be at once".to_owned(),
        Blocker::Missing { kind, failures } => {
            let what = if kind == FailureKind::Image {
                "the image is missing or does not boot"
            } else {
                "a repository cannot be fetched or lacks the branch"
            };
            format!(
                "{what}: tried {} without success; the time between two tries grows",
                times(failures)
            )
        }
        Blocker::BreakerOpen { failures } => format!(
            "the set-up failed {}; no more VMs are made by it until it changes, some time has passed or \
             `hearth pool retry` says so",
            times_in_a_row(failures)
        ),
        Blocker::HostTrouble { failures } => {
            format!(
                "this host failed {}; the next try waits a little",
                times_in_a_row(failures)
            )
        }
    }
}

/// What holds a pool back because something failed: why that failed, when it is tried again, and what to do before.
pub(super) fn backoff_message(blocker: Blocker, why: Option<&str>, until: Timestamp, project: &ProjectRow) -> String {
    let why = why
        .map(|why| format!(" ({})", reason_in_short(why)))
        .unwrap_or_default();
    let (at, project) = (format!("{until:.0}"), project_word(project));
    let mend = |what| format!("mend {what}, or try at once with `hearth pool retry {project}`");
    match blocker {
        Blocker::BreakerOpen { failures } => format!(
            "the set-up failed {}{why}; it is tried again at {at}; {}",
            times_in_a_row(failures),
            mend("it")
        ),
        Blocker::Missing { kind, failures } => {
            let what = if kind == FailureKind::Image {
                "the image is missing or does not boot"
            } else {
                "a repository cannot be fetched or lacks the branch"
            };
            format!(
                "{what}, tried {}{why}; the next try is at {at}; {}",
                times_in_a_row(failures),
                mend("that")
            )
        }
        Blocker::HostTrouble { failures } => format!(
            "this host failed {}{why}; the next try is at {at}; `hearth doctor` shows what this host lacks",
            times_in_a_row(failures)
        ),
        other => blocker_message(other),
    }
}

/// Why the planner does something.
pub fn why(reason: Reason) -> &'static str {
    match reason {
        Reason::BelowTarget => "fewer are ready or being made than should be ready",
        Reason::ReplaceStale => "one of an older recipe, or too old, gets its successor first",
        Reason::Surplus => "there are more than should be ready",
        Reason::MakesRoom => "it makes room for the build of a push: the limits allow no more VMs",
        Reason::PoolDisabled => "the pool is disabled",
        Reason::Stale => "it is too old or of an older recipe",
        Reason::LeaseEnded => "the lease of its claim ended",
        Reason::TestTimeUp => "the time of a test boot's VM is up",
        Reason::TestVmEnded => "the VM of a test boot ended by itself, or something on the host stopped it",
        Reason::Cancelled => "a person ended its boot; its record is kept",
        Reason::FailedVmNotNeeded => "it failed; its record is kept, its VM is not needed",
        Reason::RecordExpired => "its record was kept long enough",
        Reason::Built => "it has made a new template and is of no other use",
        Reason::HalfMade => "a server that ended left it half made",
    }
}

/// Why the VM of an instance is gone whose record is kept.
pub fn vm_ended(reason: Reason) -> &'static str {
    match reason {
        Reason::TestTimeUp => "the VM of a test boot is kept for 15 minutes after the boot",
        Reason::Cancelled => "its boot was cancelled",
        Reason::FailedVmNotNeeded => "it had failed, and its VM was not needed",
        other => why(other),
    }
}

/// The project, as its name is typed into a shell; its id where that would need quotes.
pub(super) fn project_word(project: &ProjectRow) -> &str {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let typed = project.name.chars().all(plain) && !project.name.starts_with('-');
    if typed { &project.name } else { project.id.as_str() }
}

/// A failure's reason on one line: how it begins and how it ends, which for a command is its exit code and its last words.
pub(super) fn reason_in_short(reason: &str) -> String {
    let short = |line: &str| match line.char_indices().nth(MAX_REASON_CHARS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    };
    let mut lines = reason.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = short(clause(lines.next().unwrap_or_default()));
    let more = lines.clone().count() > 1;
    match lines.next_back() {
        Some(last) => format!("{first}{} {}", if more { " …" } else { ";" }, short(last)),
        None => first,
    }
}

/// Why the target recipe differs from that of the template that serves.
pub(super) fn cause(
    pool: &PoolWorld,
    serves: Option<&TemplateRow>,
    checkouts: &[Checkout],
    heads: &BranchHeads,
) -> Option<String> {
    let serves = serves.filter(|template| template.recipe != pool.recipe)?;
    if !same_set_up(&serves.recipe, &pool.recipe) {
        return Some("since it or the variables were changed".to_owned());
    }
    let pushed = checkouts.iter().find_map(|checkout| {
        let commit = heads.commit(&checkout.remote(), &checkout.branch)?;
        let before = serves.repos.iter().find(|repo| repo.path == checkout.path)?;
        (before.commit != commit).then_some((checkout, commit))
    });
    let (checkout, commit) = pushed?;
    let commit: String = commit.chars().take(SHORT_COMMIT_CHARS).collect();
    Some(format!("since the push of {commit} to {}", checkout.repo_full_name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_by_its_beginning_and_its_end() {
        assert_eq!(reason_in_short("exit code 7: boom"), "exit code 7: boom");
        assert_eq!(reason_in_short("exit code 7: one\nboom\n"), "exit code 7: one; boom");
        assert_eq!(reason_in_short("a\nb\n\nc"), "a … c");
        assert_eq!(
            reason_in_short("No such file.\nSee the log."),
            "No such file; See the log."
        );
        assert_eq!(reason_in_short(&"ü".repeat(200)).chars().count(), MAX_REASON_CHARS + 1);
    }
}
