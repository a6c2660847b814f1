//! `hearth pool`: its configuration (`set`), what there is (`status`, `instances`, `instance`), a try (`test`),
//! another one (`retry`), a fresh start (`clear`), and why it is as it is (`explain`).

mod advise;
mod cancel;
mod edit;
mod explain;
mod gone;
mod live;
mod schedule;
mod show;
mod test;
mod wait;
mod watch;

use std::time::Duration;

use clap::{Args, Subcommand};
use hearth_api::instance::InstanceStatus;
use hearth_api::pool::{ClearRequest, PatchPool, PatchPoolReply};
use hearth_api::values::Branch;

use crate::args::Globals;
use crate::editor::Edited;
use crate::failure::Failure;
use crate::setup_commands::SetupArgs;
use crate::{branches, connect, output, resolve};

const SET_HELP: &str = "\
Examples:
  hearth pool set web --enabled --target 3
  hearth pool set web --command 'install: npm ci' --background 'db: ./start-db'

--command, --background and --commands-file say all commands that the pool has then: what is not given again is removed.
`hearth pool edit` opens them in your editor, to change one and keep the others.";

/// What to do with a pool.
#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// Configure the pool; options that are not given keep their values. Commands that are given replace all it has
    #[command(after_help = SET_HELP)]
    Set(SetArgs),
    /// Change the pool and its commands, one by one, in your editor ($VISUAL, else $EDITOR, else vi)
    Edit {
        /// The project's name or id
        project: String,
    },
    /// Show the pool
    Status(StatusArgs),
    /// Test the set-up: make one VM, which is never handed out, and watch every step; what has not changed does not run again
    #[command(after_help = test::AFTER_HELP)]
    Test(TestArgs),
    /// Keep another number of VMs ready in working hours, at night, on some days
    #[command(subcommand)]
    Schedule(schedule::ScheduleCommand),
    /// Remove all VMs of the pool that are not claimed
    Clear {
        /// The project's name or id
        project: String,
        /// Make new ones at once
        #[arg(long)]
        replenish: bool,
    },
    /// End one boot, a test or one of the pool; its record and its log stay
    #[command(after_help = cancel::AFTER_HELP)]
    Cancel {
        /// The project's name or id
        project: String,
        /// The instance: its id, or the beginning or end of it; may be left out when only one is being made
        #[arg(value_name = "INSTANCE")]
        id: Option<String>,
    },
    /// Try a failed set-up again at once; earlier failures no longer count
    Retry {
        /// The project's name or id
        project: String,
    },
    /// Explain the pool: its conditions and since when, its templates, each VM, what this host has left
    Explain {
        /// The project's name or id
        project: String,
        /// Also show the server's latest decisions about this pool, and what they were based on
        #[arg(long)]
        decisions: bool,
    },
    /// Advise on the target: what the claims of the last days would have met with others
    Advise(advise::AdviseArgs),
    /// Watch what happens in the pool: each change with its reason, and what the pool has after it
    Watch {
        /// The project's name or id
        project: String,
    },
    /// List the newest instances
    Instances {
        /// The project's name or id
        project: String,
        /// At most so many (1 to 50)
        #[arg(long)]
        limit: Option<u32>,
        /// Only these: ready, provisioning, failed, claimed
        #[arg(long)]
        status: Option<InstanceStatus>,
    },
    /// Show one instance with its steps
    Instance {
        /// The project's name or id
        project: String,
        #[arg(value_name = "INSTANCE", help = resolve::INSTANCE_HELP)]
        id: String,
        /// With everything that the steps printed
        #[arg(long)]
        log: bool,
        /// The log exactly as it was printed, control sequences and progress bars included; for `less -R`, say
        #[arg(long, requires = "log")]
        raw: bool,
        /// If it is being made: watch it until it is done
        #[arg(long)]
        follow: bool,
    },
}

/// `hearth pool set`.
#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    /// The project's name or id
    project: String,
    /// Keep VMs ready
    #[arg(long, conflicts_with = "disabled")]
    enabled: bool,
    /// Keep none
    #[arg(long)]
    disabled: bool,
    /// How many to keep ready (1 to 20)
    #[arg(long, value_name = "NUMBER")]
    target: Option<i64>,
    /// How long a VM may stay in the pool, in minutes (30 to 180)
    #[arg(long, value_name = "MINUTES")]
    max_age: Option<i64>,
    /// The branch of every repository
    #[arg(long, conflicts_with = "no_branch")]
    branch: Option<Branch>,
    /// Each repository's own branch
    #[arg(long)]
    no_branch: bool,
    #[command(flatten)]
    commands: SetupArgs,
}

/// `hearth pool status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// The project's name or id
    project: String,
    /// Wait until as many are ready as should be; exit code 1 when that does not come about
    #[arg(long)]
    wait: bool,
    /// Show it again whenever it changes, until Ctrl-C
    #[arg(long, conflicts_with = "wait")]
    watch: bool,
    /// How long to wait
    #[arg(long, value_name = "SECONDS", default_value_t = 3600, requires = "wait")]
    timeout: u64,
}

/// `hearth pool test`.
#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// The project's name or id
    project: String,
    /// Run every step, also those whose result is kept from an earlier boot
    #[arg(long)]
    no_cache: bool,
    #[command(flatten)]
    commands: SetupArgs,
}

/// Tests what is saved.
pub(crate) async fn test_again(globals: &Globals, project: String) -> Result<u8, Failure> {
    let args = TestArgs {
        project,
        no_cache: false,
        commands: SetupArgs::Unsaid,
    };
    test::run(globals, &args).await
}

pub(crate) async fn run(globals: &Globals, command: PoolCommand) -> Result<u8, Failure> {
    match command {
        PoolCommand::Set(args) => set(globals, args).await,
        PoolCommand::Edit { project } => {
            match edit::run(globals, &project).await? {
                Edited::Taken(reply) => output::print(globals.json, &reply, configured)?,
                Edited::Unchanged => output::note("nothing was changed"),
            }
            Ok(0)
        }
        PoolCommand::Status(args) => status(globals, args).await,
        PoolCommand::Test(args) => test::run(globals, &args).await,
        PoolCommand::Schedule(command) => schedule::run(globals, command).await,
        PoolCommand::Clear { project, replenish } => {
            let client = connect::client(globals)?;
            let project = connect::project(&client, &project).await?;
            let reply = client
                .clear_pool(
                    &project.id,
                    &ClearRequest {
                        replenish: replenish.then_some(true),
                    },
                )
                .await?;
            output::print(globals.json, &reply, |reply| {
                format!(
                    "removed {}; now {}",
                    output::count(reply.cleared, "instance"),
                    show::counts(&reply.status)
                )
            })?;
            Ok(0)
        }
        PoolCommand::Cancel { project, id } => cancel::run(globals, &project, id.as_deref()).await,
        PoolCommand::Retry { project } => {
            let client = connect::client(globals)?;
            let project = connect::project(&client, &project).await?;
            let reply = client.retry_pool(&project.id).await?;
            output::print(globals.json, &reply, |reply| {
                format!("it is tried again; now {}", show::counts(&reply.status))
            })?;
            Ok(0)
        }
        PoolCommand::Explain { project, decisions } => {
            let client = connect::client(globals)?;
            let project = connect::project(&client, &project).await?;
            let explained = client.explain_pool(&project.id).await?;
            output::print(globals.json, &explained, |explained| {
                explain::show(explained, decisions)
            })?;
            Ok(0)
        }
        PoolCommand::Advise(args) => advise::run(globals, args).await,
        PoolCommand::Watch { project } => {
            let client = connect::client(globals)?;
            let project = connect::project(&client, &project).await?;
            live::run(globals, &client, &project).await
        }
        PoolCommand::Instances { project, limit, status } => {
            let client = connect::client(globals)?;
            let project = connect::project(&client, &project).await?;
            let items = client.list_instances(&project.id, limit, status).await?;
            let gone = match globals.json {
                true => Vec::new(),
                false => gone::of(&client, &items.items).await,
            };
            output::print(globals.json, &items, |items| show::instances(items, &gone))?;
            Ok(0)
        }
        PoolCommand::Instance {
            project,
            id,
            log,
            raw,
            follow,
        } => {
            let client = connect::client(globals)?;
            let project = connect::project(&client, &project).await?;
            let id = resolve::instance_of(&client, &project.id, &id).await?;
            let mut detail = client.get_instance(&project.id, &id).await?;
            if follow && detail.status == InstanceStatus::Provisioning {
                detail = crate::boot::follow(&client, &project.id, &id, &mut crate::boot::Screen::on_stderr()).await?;
            }
            let gone = gone::of_one(&client, &id).await;
            if globals.json {
                output::print_json(&detail)?;
            } else if raw {
                output::print_as_it_is(&show::raw_log(&detail))?;
            } else {
                output::print_as_it_is(&show::instance(&detail, gone.as_ref(), log))?;
            }
            Ok(0)
        }
    }
}

async fn set(globals: &Globals, args: SetArgs) -> Result<u8, Failure> {
    let patch = PatchPool {
        enabled: match (args.enabled, args.disabled) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        },
        target_size: args.target,
        max_age_minutes: args.max_age,
        branch: if args.no_branch {
            Some(None)
        } else {
            args.branch.map(Some)
        },
        setup_commands: args.commands.read()?,
    };
    if patch == PatchPool::default() {
        return Err(Failure::usage("nothing to set").hint("see `hearth pool set --help`"));
    }
    let client = connect::client(globals)?;
    let project = connect::project(&client, &args.project).await?;
    let reply = client.patch_pool(&project.id, &patch).await?;
    output::print(globals.json, &reply, configured)?;
    let left = reply.status.ready;
    if patch.enabled == Some(false) && left > 0 {
        output::note(&format!(
            "the pool's {} {} deleted now; claimed VMs stay",
            output::count(left, "ready VM"),
            if left == 1 { "is" } else { "are" },
        ));
    }
    if matches!(patch.branch, Some(Some(_))) {
        branches::warn(&client, &project).await;
    }
    Ok(0)
}

fn configured(reply: &PatchPoolReply) -> String {
    show::config_and_counts(reply.config.as_ref(), &reply.status, None)
}

async fn status(globals: &Globals, args: StatusArgs) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
    let project = connect::project(&client, &args.project).await?;
    if args.watch {
        return watch::run(globals, &client, &project).await;
    }
    if !args.wait && globals.json {
        output::print_json(&client.get_pool(&project.id).await?)?;
        return Ok(0);
    }
    let (view, explained, full) = if args.wait {
        wait::until_full(&client, &project, Duration::from_secs(args.timeout)).await?
    } else {
        let view = client.get_pool(&project.id).await?;
        let (view, explained) = show::both(&client, &project, view).await?;
        (view, explained, true)
    };
    if globals.json {
        output::print_json(&view)?;
    } else {
        output::print_line(&show::pool(&view, &explained))?;
    }
    Ok(if full { 0 } else { crate::failure::EXIT_FAILED })
}
