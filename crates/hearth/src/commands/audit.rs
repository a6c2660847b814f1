//! `hearth audit`: who did what.

use clap::Args;
use hearth_api::audit::AuditEntry;
use hearth_api::page::Items;
use jiff::tz::TimeZone;

use crate::args::Globals;
use crate::failure::Failure;
use crate::text::clean_line;
use crate::{connect, output};

/// Entries that are shown when nothing else is said.
const DEFAULT_LIMIT: u32 = 50;

const AFTER_HELP: &str = "\
Examples:
  hearth audit                 the newest 50 entries
  hearth audit web --limit 200
  hearth audit --before 4711   the page before

An operation is named as the OpenAPI document has it (`hearth openapi`); the status is that of the answer.";

/// `hearth audit`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct AuditArgs {
    /// Only about this project (name or id)
    project: Option<String>,
    /// At most so many
    #[arg(long, value_name = "COUNT", default_value_t = DEFAULT_LIMIT, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Only older ones than this entry
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
    before: Option<u64>,
}

pub(crate) async fn run(globals: &Globals, args: AuditArgs) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
    let project = match &args.project {
        Some(text) => Some(connect::project(&client, text).await?.id),
        None => None,
    };
    let entries = client.audit(project.as_ref(), args.before, args.limit).await?;
    output::print(globals.json, &entries, list)?;
    Ok(0)
}

fn list(entries: &Items<AuditEntry>) -> String {
    if entries.items.is_empty() {
        return "nothing was done".to_owned();
    }
    let zone = TimeZone::system();
    let row = |entry: &AuditEntry| {
        [
            entry.id.to_string(),
            entry
                .at
                .to_zoned_datetime(zone.clone())
                .strftime("%m-%d %H:%M:%S")
                .to_string(),
            who(entry),
            entry.address.clone().unwrap_or_else(|| "-".to_owned()),
            entry.operation.clone(),
            what(entry),
            entry.status.to_string(),
        ]
    };
    output::table(
        ["Entry", "When", "Who", "From", "Operation", "What", "Status"],
        entries.items.iter().map(row),
    )
}

/// Its owner, and the token when it has another name.
fn who(entry: &AuditEntry) -> String {
    if entry.owner == entry.token_name {
        return clean_line(&entry.owner);
    }
    clean_line(&format!("{} ({})", entry.owner, entry.token_name))
}

/// What it was about: the most that the path names.
fn what(entry: &AuditEntry) -> String {
    let instance = entry.instance_id.as_ref().map(ToString::to_string);
    let project = entry.project_id.as_ref().map(ToString::to_string);
    let subject = entry.subject.as_deref().map(clean_line);
    let place = instance.or(project);
    let all: Vec<String> = place.into_iter().chain(subject).collect();
    if all.is_empty() { "-".to_owned() } else { all.join(" ") }
}
