//! `hearth pool schedule`: when a pool keeps another number of VMs ready.

use clap::{Args, Subcommand};
use hearth_api::schedule::{PoolSchedule, PoolScheduleView, ScheduleWindow};
use hearth_api::values::{CronText, TimeZoneName};

use crate::args::Globals;
use crate::failure::Failure;
use crate::{connect, output};

const AFTER_HELP: &str = "\
Examples:
  hearth pool schedule set web --time-zone Europe/Berlin --window '0 8 * * 1-5 to 0 18 * * 1-5 = 8'
  hearth pool schedule set web --window '0 22 * * * to 0 6 * * * = 0'
  hearth pool schedule show web

A window goes from each START to the END after it; both are cron's five fields: minute, hour, day of the month, month, day of the
week (0 is Sunday). Outside of every window the pool's own target size holds; where windows overlap, the largest.";

/// What to do with a pool's schedule.
#[derive(Debug, Subcommand)]
#[command(after_help = AFTER_HELP)]
pub(crate) enum ScheduleCommand {
    /// Show the windows, and how many VMs are kept ready now
    Show {
        /// The project's name or id
        project: String,
    },
    /// Set all windows; those from before are removed
    Set(SetArgs),
    /// Remove all windows: the pool's own target size holds
    Remove {
        /// The project's name or id
        project: String,
    },
}

/// `hearth pool schedule set`.
#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    /// The project's name or id
    project: String,
    /// Where the times are local
    #[arg(long, default_value = "UTC", value_name = "NAME")]
    time_zone: TimeZoneName,
    /// When, and how many; several times for several windows
    #[arg(long = "window", required = true, value_name = "START to END = NUMBER", value_parser = window)]
    windows: Vec<ScheduleWindow>,
}

fn window(text: &str) -> Result<ScheduleWindow, String> {
    let (times, number) = text.rsplit_once('=').ok_or("has no `=` and number of VMs at its end")?;
    let (start, end) = times
        .split_once(" to ")
        .ok_or("has no ` to ` between its start and its end")?;
    let cron = |text: &str| {
        let fields: Vec<&str> = text.split_whitespace().collect();
        CronText::try_from(fields.join(" ")).map_err(|error| format!("`{}` {error}", text.trim()))
    };
    Ok(ScheduleWindow {
        start: cron(start)?,
        end: cron(end)?,
        target_size: match number.trim().parse() {
            Ok(number @ 0..=20) => number,
            _ => return Err(format!("`{}` must be a number of VMs, from 0 to 20", number.trim())),
        },
    })
}

pub(super) async fn run(globals: &Globals, command: ScheduleCommand) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
    let view = match command {
        ScheduleCommand::Show { project } => {
            let project = connect::project(&client, &project).await?;
            client.pool_schedule(&project.id).await?
        }
        ScheduleCommand::Set(args) => {
            let project = connect::project(&client, &args.project).await?;
            let schedule = PoolSchedule {
                time_zone: args.time_zone,
                windows: args.windows,
            };
            client.put_pool_schedule(&project.id, &schedule).await?
        }
        ScheduleCommand::Remove { project } => {
            let project = connect::project(&client, &project).await?;
            let now = client.pool_schedule(&project.id).await?;
            match now.time_zone {
                Some(time_zone) => {
                    let windows = Vec::new();
                    client
                        .put_pool_schedule(&project.id, &PoolSchedule { time_zone, windows })
                        .await?
                }
                None => now,
            }
        }
    };
    output::print(globals.json, &view, show)?;
    Ok(0)
}

fn show(view: &PoolScheduleView) -> String {
    let now = match view.changes_at {
        Some(at) => format!("{} VMs are kept ready now, until {at:.0}", view.target_size),
        None => format!("{} VMs are kept ready", view.target_size),
    };
    let Some(zone) = &view.time_zone else {
        return format!("{now}: the pool's own target size; there is no schedule");
    };
    let row = |window: &ScheduleWindow| {
        [
            window.start.to_string(),
            window.end.to_string(),
            window.target_size.to_string(),
        ]
    };
    format!(
        "{}\ntime zone {zone}; outside of these windows {} VMs (the pool's own target size)\n{now}",
        output::table(["Start", "End", "VMs"], view.windows.iter().map(row)),
        view.own_target_size
    )
}
