//! Pools and instances as text for people.

use hearth_api::client::{Client, ClientError};
use hearth_api::explain::PoolExplained;
use hearth_api::find::ProjectFound;
use hearth_api::instance::{InstanceDetail, InstanceItem, InstanceStatus, interruption_of};
use hearth_api::page::Items;
use hearth_api::pool::{Config, PoolView, Status};

use super::explain;
use super::gone::{self, Seen};
use crate::text::{clean_line, clean_lines};
use crate::{boot, hint, output};

pub(super) fn counts(status: &Status) -> String {
    format!(
        "{} ready, {} being made, {} failed",
        status.ready, status.provisioning, status.failed
    )
}

/// A pool and why it is so, at one moment: the counts are those of the explanation.
pub(super) async fn both(
    client: &Client,
    project: &ProjectFound,
    mut view: PoolView,
) -> Result<(PoolView, PoolExplained), ClientError> {
    let explained = client.explain_pool(&project.id).await?;
    view.status = explained.status;
    Ok((view, explained))
}

pub(super) fn pool(view: &PoolView, explained: &PoolExplained) -> String {
    let mut text = explain::headline(explained);
    text.push_str("\n\n");
    text.push_str(&config_and_counts(
        view.config.as_ref(),
        &view.status,
        Some(explained.target),
    ));
    if let Some(metadata) = &view.metadata {
        text.push('\n');
        text.push_str(&output::pairs([
            ("last made", output::ago_or(metadata.last_provisioned_at, "never")),
            ("last claimed", output::ago_or(metadata.last_claimed_at, "never")),
        ]));
    }
    if !view.allowed {
        text.push_str("\nthis project may have no pool");
    }
    text
}

/// `target`: what is kept ready now, where that is known; a schedule may say another number than the configuration.
pub(super) fn config_and_counts(config: Option<&Config>, status: &Status, target: Option<u64>) -> String {
    let Some(config) = config else {
        return format!(
            "not set up yet ({}): say what it should be with `hearth pool set PROJECT`",
            counts(status)
        );
    };
    let own = config.target_size.to_string();
    let target = match target {
        Some(now) if now.to_string() != own => {
            format!("{now} now, by the schedule or what the project may have; {own} is the pool's own")
        }
        _ => own,
    };
    let commands = match config.setup_commands.as_deref() {
        None | Some([]) => "-".to_owned(),
        Some(commands) => {
            let line = |command: &hearth_api::pool::SetupCommand| {
                let how = match (command.background, command.timeout_seconds) {
                    (Some(true), _) => " (in the background)".to_owned(),
                    (_, Some(seconds)) => format!(" (at most {seconds} s)"),
                    _ => String::new(),
                };
                format!(
                    "{}{how}: {}",
                    command.name,
                    clean_line(&command.command.replace('\n', "; "))
                )
            };
            commands.iter().map(line).collect::<Vec<_>>().join("\n")
        }
    };
    output::pairs([
        ("now", counts(status)),
        ("enabled", if config.enabled { "yes" } else { "no" }.to_owned()),
        ("target", target),
        ("maximum age", format!("{} min", config.max_age_minutes)),
        (
            "branch",
            config
                .branch
                .clone()
                .unwrap_or_else(|| "each repository's own".to_owned()),
        ),
        ("commands", commands),
    ])
}

pub(super) fn instances(items: &Items<InstanceItem>, seen: &[Seen]) -> String {
    if items.items.is_empty() {
        return "no instances".to_owned();
    }
    let row = |item: &InstanceItem| {
        let kind = if item.is_test { "test" } else { "pool" };
        let named = gone::find(seen, &item.id).and_then(|seen| seen.failure.as_deref());
        let reason = named
            .or(item.failure_reason.as_deref())
            .unwrap_or("-")
            .lines()
            .next()
            .unwrap_or("-");
        [
            item.id.to_string(),
            match gone::find(seen, &item.id).and_then(Seen::vm_ended) {
                Some(ended) => format!("{} ({ended})", item.status.as_str()),
                None => item.status.as_str().to_owned(),
            },
            kind.to_owned(),
            output::ago(item.created_at),
            output::ago_or(item.provisioned_at, "-"),
            clean_line(reason),
        ]
    };
    output::table(
        ["Id", "Status", "Kind", "Requested", "Ready", "Failure"],
        items.items.iter().map(row),
    )
}

pub(super) fn instance(detail: &InstanceDetail, seen: Option<&Seen>, log: bool) -> String {
    let mut pairs = vec![
        ("id", detail.id.to_string()),
        ("VM", detail.instance_id.to_string()),
        (
            "status",
            match seen.and_then(Seen::vm_ended) {
                Some(ended) => format!("{}\n{ended}", detail.status.as_str()),
                None => detail.status.as_str().to_owned(),
            },
        ),
        (
            "kind",
            if detail.is_test {
                "test boot: it is never handed out"
            } else {
                "pool"
            }
            .to_owned(),
        ),
        ("requested", output::ago(detail.created_at)),
    ];
    if let Some(interruption) = interruption_of(&detail.steps) {
        pairs.push(("interrupted", interruption));
    }
    let mut text = output::pairs(pairs);
    text.push_str("\n\n");
    text.push_str(&boot::table(detail));
    if let Some(reason) = boot::failure(detail) {
        let reason = hint::complete(&clean_lines(&reason).join("\n        "));
        text.push_str(&format!("\n\nfailed: {reason}"));
    }
    if log {
        for step in &detail.steps {
            let Some(printed) = &step.output else { continue };
            let subject = boot::subject_of(step)
                .map(|subject| format!(" {subject}"))
                .unwrap_or_default();
            text.push_str(&clean_line(&format!("--- {}{subject}", step.name)).replacen("---", "\n\n---", 1));
            for line in clean_lines(printed) {
                text.push_str("\n  | ");
                text.push_str(&line);
            }
        }
    } else if detail.status == InstanceStatus::Failed {
        for line in boot::failed_output(detail) {
            text.push_str("\n  | ");
            text.push_str(&line);
        }
    }
    text
}

/// The log as the commands printed it: what reads it must bear control sequences.
pub(super) fn raw_log(detail: &InstanceDetail) -> String {
    let mut text = String::new();
    for step in &detail.steps {
        let subject = boot::subject_of(step).map(|subject| format!(" {subject}"));
        text.push_str(&clean_line(&format!(
            "--- {}{}",
            step.name,
            subject.unwrap_or_default()
        )));
        text.push('\n');
        let printed = step.output.as_deref().unwrap_or_default();
        text.push_str(printed);
        if !printed.is_empty() && !printed.ends_with('\n') {
            text.push('\n');
        }
    }
    text
}
