//! `hearth pool advise`: what another target size would have meant.

use clap::Args;
use hearth_api::advice::{AdviceOutcome, PoolAdvice};

use crate::args::Globals;
use crate::failure::Failure;
use crate::{connect, hint, output};

/// `hearth pool advise`.
#[derive(Debug, Args)]
pub(crate) struct AdviseArgs {
    /// The project's name or id
    project: String,
    /// Replay the claims of so many days
    #[arg(long, value_name = "DAYS", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=90))]
    days: u32,
    /// Also say what this target would have meant
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(0..=50))]
    target: Option<u32>,
}

pub(super) async fn run(globals: &Globals, args: AdviseArgs) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
    let project = connect::project(&client, &args.project).await?;
    let advice = client.advise_pool(&project.id, args.days, args.target).await?;
    output::print(globals.json, &advice, show)?;
    if !globals.json && advice.suggested.target != advice.present.target && advice.claims > 0 {
        let target = advice.suggested.target.to_string();
        let set = hint::command(["pool", "set", args.project.as_str(), "--target", &target]);
        output::note(&format!("to follow it: {set}"));
    }
    Ok(0)
}

fn show(advice: &PoolAdvice) -> String {
    let row = |what: &str, outcome: &AdviceOutcome| {
        [
            what.to_owned(),
            outcome.target.to_string(),
            format!("{:.1} %", outcome.hit_rate * 100.0),
            output::millis(outcome.p95_wait_ms),
            format!("{:.1}", outcome.vm_hours),
        ]
    };
    let mut rows = vec![row("now", &advice.present), row("suggested", &advice.suggested)];
    rows.extend(advice.asked.iter().map(|asked| row("asked", asked)));
    let table = output::table(["", "Target", "Warm", "95 of 100 wait at most", "VM-hours ready"], rows);
    format!(
        "{} replayed; a VM takes {} to be made, {} at a time\n\n{table}",
        output::count(advice.claims, "claim"),
        output::millis(advice.refill_ms),
        advice.at_once
    )
}
