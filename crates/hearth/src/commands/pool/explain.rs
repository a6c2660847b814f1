//! Why a pool is as it is, as text for people: the summary first, then what is so, then the details.

use bytesize::ByteSize;
use hearth_api::counted::times;
use hearth_api::explain::{
    Condition, DecisionExplained, HostUse, InstanceExplained, PoolExplained, RepoBehind, RepositoryExplained,
    TemplateInfo,
};

use crate::text::clean_line;
use crate::{hint, output, words};

/// As much of a commit as git shows.
const SHORT_COMMIT_CHARS: usize = 7;
/// Conditions that only say how full and fresh the pool is, which the summary says too.
const PLAIN: [&str; 3] = ["Full", "Fresh", "Disabled"];

/// A sentence of the server in this program's words, with commands that find that server.
fn said(sentence: &str) -> String {
    hint::complete(&words::in_sentence(&clean_line(sentence)))
}

/// The summary, and what else is so of the pool.
pub(super) fn headline(explained: &PoolExplained) -> String {
    let mut text = said(&explained.summary);
    let told = |it: &&Condition| it.status && !PLAIN.contains(&it.kind.as_str());
    for condition in explained.conditions.iter().filter(told) {
        text.push_str(&format!("\n  {}: {}", condition.kind, said(&condition.message)));
    }
    text
}

pub(super) fn show(explained: &PoolExplained, decisions: bool) -> String {
    let mut text = said(&explained.summary);
    let mut part = |part: String| {
        text.push_str("\n\n");
        text.push_str(&part);
    };
    part(conditions(&explained.conditions));
    part(what_is_made(explained));
    if let Some(jump) = clock_jump(&explained.host) {
        part(jump);
    }
    if !explained.instances.is_empty() {
        part(instances(&explained.instances));
    }
    if decisions {
        part(decided(&explained.decisions));
    }
    text
}

fn conditions(all: &[Condition]) -> String {
    let row = |it: &Condition| {
        [
            it.kind.clone(),
            if it.status { "yes" } else { "no" }.to_owned(),
            output::ago(it.since),
            said(&it.message),
        ]
    };
    output::table(["Condition", "Status", "Since", "Message"], all.iter().map(row))
}

fn what_is_made(explained: &PoolExplained) -> String {
    let serving = if explained.serving_recipe == explained.recipe {
        "the target recipe".to_owned()
    } else {
        format!("{} (the target recipe has no template yet)", explained.serving_recipe)
    };
    let host = &explained.host;
    output::wrapped_pairs([
        ("target recipe", explained.recipe.clone()),
        ("new VMs use", serving),
        (
            "templates",
            output::lines_or_dash(explained.templates.iter().map(template)),
        ),
        (
            "repositories",
            output::lines_or_dash(explained.repositories.iter().map(repository)),
        ),
        ("VMs of this host", format!("{} of {}", host.vms, host.max_vms)),
        (
            "memory for VMs",
            format!("{} of {} MiB", host.memory_mib, host.max_memory_mib),
        ),
        ("claimed VMs", said(&host.claimed_memory)),
        ("being made", being_made(host)),
        (
            "disk for templates",
            format!(
                "{} of {}",
                ByteSize(host.template_disk_bytes),
                ByteSize(host.max_template_disk_bytes)
            ),
        ),
    ])
}

/// Said only where it happened.
fn clock_jump(host: &HostUse) -> Option<String> {
    let (at, by) = (host.clock_jumped_at?, host.clock_jumped_by_ms?);
    let (length, way) = (output::millis(by.unsigned_abs()), if by < 0 { "back" } else { "ahead" });
    Some(format!("this host's clock jumped {length} {way}, {}", output::ago(at)))
}

fn being_made(host: &HostUse) -> String {
    format!(
        "{} of {} set-ups, {} of {} forks",
        host.provisions, host.max_provisions, host.forks, host.max_forks
    )
}

fn short(commit: &str) -> String {
    commit.chars().take(SHORT_COMMIT_CHARS).collect()
}

fn template(template: &TemplateInfo) -> String {
    let (made, key) = (output::ago(template.created_at), output::short_digest(&template.key));
    let repos: Vec<_> = template
        .repos
        .iter()
        .map(|repo| format!(", {} {}", repo.repo_full_name, short(&repo.commit)))
        .collect();
    let serving = if template.serving { ", serving" } else { "" };
    clean_line(&format!(
        "{} made {made} ({key}){}{serving}",
        template.recipe,
        repos.concat()
    ))
}

fn repository(repo: &RepositoryExplained) -> String {
    let at = match (&repo.commit, repo.since) {
        (Some(commit), Some(since)) => format!("{} (seen there first: {})", short(commit), output::ago(since)),
        _ => "not seen yet".to_owned(),
    };
    clean_line(&format!("{} {} {at}", repo.repo_full_name, repo.branch))
}

fn instances(all: &[InstanceExplained]) -> String {
    let row = |instance: &InstanceExplained| {
        let missed = (instance.missed > 0).then(|| format!("; has not answered {}", times(instance.missed)));
        let ended = instance.vm_ended_at.map(|at| {
            let why = instance.vm_ended_because.as_deref().unwrap_or_default();
            clean_line(&format!("; VM ended {}: {why}", output::ago(at)))
        });
        let kept = instance.kept_until.map(|until| format!("; kept until {until:.0}"));
        [
            instance.id.to_string(),
            format!(
                "{}{}{}{}",
                instance.status.as_str(),
                ended.unwrap_or_default(),
                kept.unwrap_or_default(),
                missed.unwrap_or_default()
            ),
            if instance.is_test { "test" } else { "pool" }.to_owned(),
            if instance.current { "target" } else { "older" }.to_owned(),
            output::lines_or_dash(instance.repos.iter().map(checkout)),
            output::millis(instance.age_ms),
            output::millis(instance.since_ms),
            format!("{} MiB", instance.memory_mib),
        ]
    };
    let header = [
        "Instance",
        "State",
        "Kind",
        "Recipe",
        "Checkouts",
        "Age",
        "For",
        "Counts with",
    ];
    output::table(header, all.iter().map(row))
}

fn checkout(repo: &RepoBehind) -> String {
    let behind = match repo.behind {
        Some(0) => String::new(),
        Some(count) => format!(
            " {}",
            output::unbroken(&format!("({} behind)", output::count(count, "commit")))
        ),
        None => " (not known how far behind)".to_owned(),
    };
    clean_line(&format!("{} {}{behind}", repo.repo_full_name, short(&repo.commit)))
}

fn decided(all: &[DecisionExplained]) -> String {
    if all.is_empty() {
        return "no decisions since the server started".to_owned();
    }
    let row = |it: &DecisionExplained| {
        let about = it
            .instance
            .as_ref()
            .map(ToString::to_string)
            .or_else(|| it.recipe.clone());
        let inputs = &it.inputs;
        [
            output::ago(it.at),
            it.count.to_string(),
            it.action.clone(),
            about.unwrap_or_else(|| "-".to_owned()),
            format!("{} of {}, {} being made", inputs.ready, inputs.target, inputs.making),
            said(&it.reason),
        ]
    };
    output::table(
        ["When", "Times", "Decided", "About", "Ready", "Why"],
        all.iter().map(row),
    )
}
