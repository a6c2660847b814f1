//! `hearth history`: what was claimed and made, also when it is gone.

use clap::Args;
use hearth_api::client::HistoryQuery;
use hearth_api::history::{BootDetail, BootRecord, ClaimRecord, History};
use hearth_api::ids::InstanceId;
use hearth_api::instance::{Step, StepStatus};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::args::Globals;
use crate::failure::Failure;
use crate::text::clean_line;
use crate::{connect, output};

const AFTER_HELP: &str = "\
Examples:
  hearth history web                       the newest claims and boots
  hearth history web --troubled            claims that were not warm, and boots that failed
  hearth history web --text T-4711         those of a task
  hearth history web --boot wpi_01a2…      one boot with everything that its steps printed
  hearth history web --before 2026-11-28T00:00:00Z

Why a claim was not warm: bypass (it was to leave the pool alone), poolDisabled, unfit (the ready VMs that were tried), olderRecipe (it was strict), setUpFails,
noTemplate (the pool's first VMs were being made), drained (claims came faster than the pool was filled).";

/// `hearth history`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct HistoryArgs {
    /// The project's name or id
    project: String,
    /// At most so many of each
    #[arg(long, value_name = "COUNT", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Only what began before this time
    #[arg(long, value_name = "TIME")]
    before: Option<Timestamp>,
    /// Only claims that were not warm, and boots that failed
    #[arg(long)]
    troubled: bool,
    /// Only those with this text in an instance's id, a task, an owner or a failure
    #[arg(long, value_name = "TEXT")]
    text: Option<String>,
    /// Show this boot, with what its steps printed
    #[arg(long, value_name = "INSTANCE", conflicts_with_all = ["limit", "before", "troubled", "text"])]
    boot: Option<InstanceId>,
}

pub(crate) async fn run(globals: &Globals, args: HistoryArgs) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
    let project = connect::project(&client, &args.project).await?;
    if let Some(id) = &args.boot {
        let boot = client.history_boot(&project.id, id).await?;
        if globals.json {
            output::print_json(&boot)?;
        } else {
            output::print_as_it_is(&detail(&boot))?;
        }
        return Ok(0);
    }
    let query = HistoryQuery {
        limit: Some(args.limit),
        before: args.before,
        troubled: args.troubled,
        text: args.text,
    };
    let history = client.history(&project.id, &query).await?;
    output::print(globals.json, &history, show)?;
    Ok(0)
}

fn show(history: &History) -> String {
    let claims = match history.claims.is_empty() {
        true => "no claims".to_owned(),
        false => output::table(
            ["Claimed", "Instance", "Task", "Owner", "From", "Wait", "Cause", "Ended"],
            history.claims.iter().map(claim),
        ),
    };
    let boots = match history.boots.is_empty() {
        true => "no boots".to_owned(),
        false => output::table(
            ["Ordered", "Instance", "For", "Why", "Took", "Outcome", "Gone"],
            history.boots.iter().map(boot),
        ),
    };
    format!("{claims}\n\n{boots}")
}

fn claim(record: &ClaimRecord) -> [String; 8] {
    let text = |text: &Option<String>| clean_line(text.as_deref().unwrap_or("-"));
    [
        at(record.claimed_at),
        record.id.to_string(),
        text(&record.task_id),
        text(&record.owner),
        record.source.as_str().to_owned(),
        output::millis(record.wait_ms),
        record.cause.map_or("-", |cause| cause.as_str()).to_owned(),
        record.ended_at.map_or_else(
            || "-".to_owned(),
            |end| format!("{} ({})", at(end), text(&record.ended_because)),
        ),
    ]
}

fn boot(record: &BootRecord) -> [String; 7] {
    let text = |text: &Option<String>| first_line(text.as_deref().unwrap_or("-"));
    let took = record
        .ended_at
        .map(|end| end.duration_since(record.ordered_at).as_millis());
    let took = took.and_then(|ms| u64::try_from(ms).ok());
    let outcome = match (&record.outcome, &record.failure) {
        (Some(outcome), Some(failure)) => format!("{outcome}: {}", first_line(failure)),
        (outcome, _) => text(outcome),
    };
    [
        at(record.ordered_at),
        record.id.to_string(),
        record.purpose.clone(),
        text(&record.reason),
        took.map_or_else(|| "-".to_owned(), output::millis),
        outcome,
        text(&record.gone_because),
    ]
}

fn detail(detail: &BootDetail) -> String {
    let record = &detail.boot;
    let mut lines = vec![output::pairs([
        ("instance", record.id.to_string()),
        ("made for", record.purpose.clone()),
        ("why", clean_line(record.reason.as_deref().unwrap_or("-"))),
        ("recipe", record.recipe.clone()),
        ("ordered", at(record.ordered_at)),
        ("outcome", record.outcome.clone().unwrap_or_else(|| "-".to_owned())),
        ("gone", clean_line(record.gone_because.as_deref().unwrap_or("-"))),
    ])];
    if detail.steps.is_empty() {
        lines.push("its log is not kept".to_owned());
    }
    lines.extend(detail.steps.iter().map(step));
    lines.join("\n\n")
}

fn step(step: &Step) -> String {
    let took = step.duration_ms.map(output::millis).unwrap_or_default();
    let status = match step.status {
        StepStatus::Success => "ok",
        StepStatus::Error => "failed",
    };
    let mut lines = vec![format!("{} {status} {took}", step.name)];
    let printed = step.error.iter().chain(&step.output).flat_map(|text| text.lines());
    lines.extend(printed.map(|line| format!("  {}", clean_line(line))));
    lines.join("\n")
}

fn at(time: Timestamp) -> String {
    let local = time.to_zoned_datetime(TimeZone::system());
    local.strftime("%m-%d %H:%M:%S").to_string()
}

fn first_line(text: &str) -> String {
    clean_line(text.lines().next().unwrap_or_default())
}
