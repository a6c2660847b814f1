//! `hearth claim`: take a VM out of a pool, and `hearth claim explain`: why it got that one.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use hearth_api::claim::{ClaimReply, ClaimRequest, ClaimSource, ClaimedRepo, MAX_LEASE_MINUTES, Miss, SetUpPart};
use hearth_api::client::{Client, ClientError};
use hearth_api::exec::ExecRequest;
use hearth_api::explain::{ClaimExplained, ClaimPhase};
use hearth_api::ids::InstanceId;
use hearth_api::values::{Branch, CheckpointName, TaskId, Word};
use jiff::Timestamp;

use super::exec::{self, ExecOptions};
use super::{claim_wait, ssh};
use crate::args::{GitIdentityArgs, Globals};
use crate::caller_env;
use crate::failure::Failure;
use crate::text::clean_line;
use crate::{connect, hint, output, resolve, words};

/// Milliseconds in a second.
const MS_PER_S: u64 = 1000;

/// `hearth claim`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct ClaimArgs {
    #[command(subcommand)]
    command: Option<ClaimCommand>,
    /// The project's name or id
    #[arg(required = true)]
    project: Option<String>,
    /// The task it is for: asking again with the same one gives the same VM
    #[arg(long, value_name = "ID")]
    task: Option<TaskId>,
    /// Check this branch out in every repository that has it; when none has it, nothing is claimed
    #[arg(long)]
    branch: Option<Branch>,
    /// What to do when none is ready: wait for one that is being made or make one (prefer, the default), take a ready VM only and else say
    /// so with exit code 5, after --wait if that is given (require), or leave the pool alone and make one (bypass). Making one without a
    /// template takes time: without --wait, prefer and bypass make none then and say so with exit code 5 too
    #[arg(long, value_enum)]
    miss: Option<MissArg>,
    /// Wait for one that is being made, at most so many seconds (600 when no number stands behind it)
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "600")]
    wait: Option<u64>,
    /// Length of the lease in minutes
    #[arg(long, value_name = "MINUTES")]
    ttl: Option<u64>,
    /// Never take one that was made before the last change of the set-up or the last push that the server knows of; wait while
    /// that is set up. The server knows of a push at once where a webhook tells it, and else when it polls the repository
    /// (`hearth serve --watch-interval`): a commit that was pushed after the last poll is not promised
    #[arg(long)]
    strict: bool,
    /// A variable for this task alone: NAME=VALUE, or NAME to take it from your own environment (use that for secrets);
    /// may be repeated
    #[arg(long = "env", value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    #[command(flatten)]
    git: GitIdentityArgs,
    /// Let the owner of this public key enter the VM by SSH, besides the key that `hearth ssh` makes for itself
    #[arg(long, value_name = "FILE")]
    ssh_key: Option<PathBuf>,
    /// Continue from this checkpoint of the project (`hearth checkpoint list`) instead of taking a VM of the pool; the VM is as the
    /// checkpoint is
    #[arg(long, value_name = "NAME", conflicts_with_all = ["branch", "miss", "wait", "strict", "env", "git_name", "git_email"])]
    checkpoint: Option<CheckpointName>,
    /// Print the instance's id alone
    #[arg(long, conflicts_with = "json")]
    id_only: bool,
    /// Run the command behind `--` in it, pass its output and exit code on, and release it: `hearth claim web --exec -- npm test`
    #[arg(long, requires = "argv", conflicts_with = "id_only")]
    exec: bool,
    /// The program and its arguments, run without a shell
    #[arg(trailing_var_arg = true, requires = "exec", value_name = "COMMAND")]
    argv: Vec<Word>,
}

/// What else there is to do with claims.
#[derive(Debug, Subcommand)]
enum ClaimCommand {
    /// Why a claim got its VM, and where the milliseconds went. (A project that is called `explain`: `hearth claim -- explain`)
    Explain {
        #[arg(value_name = "INSTANCE", help = resolve::INSTANCE_HELP)]
        id: String,
    },
    /// Let a lease end later. (A project that is called `extend`: `hearth claim -- extend`)
    Extend {
        #[arg(value_name = "INSTANCE", help = resolve::INSTANCE_HELP)]
        id: String,
        /// By how many minutes later, at most to 7 days from now; without it the lease begins again, with the length it was
        /// claimed with
        #[arg(long, value_name = "MINUTES", value_parser = clap::value_parser!(u64).range(1..=MAX_LEASE_MINUTES))]
        by: Option<u64>,
    },
}

/// `--miss`.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum MissArg {
    Prefer,
    Require,
    Bypass,
}

impl From<MissArg> for Miss {
    fn from(arg: MissArg) -> Self {
        match arg {
            MissArg::Prefer => Self::Prefer,
            MissArg::Require => Self::Require,
            MissArg::Bypass => Self::Bypass,
        }
    }
}

/// The lease of a VM that has ended can be kept: its record stays so long. But there is nothing in it to keep.
async fn note_ended(client: &Client, id: &InstanceId) {
    // A token that may not ask for it need not.
    let Ok(view) = client.view_instance(id).await else {
        return;
    };
    if let Some(at) = view.vm_ended_at {
        let why = view.vm_ended_because.as_deref().map(clean_line).unwrap_or_default();
        output::note(&format!("warning: the VM ended at {at:.0}: {why}"));
    }
}

pub(crate) async fn run(globals: &Globals, args: ClaimArgs) -> Result<u8, Failure> {
    match args.command {
        Some(ClaimCommand::Explain { id }) => {
            let client = connect::client(globals)?;
            let id = resolve::claimed_instance(&client, &id).await?;
            output::print(globals.json, &client.explain_claim(&id).await?, explain)?;
            return Ok(0);
        }
        Some(ClaimCommand::Extend { id, by }) => {
            let client = connect::client(globals)?;
            let id = resolve::instance(&client, &id).await?;
            let reply = match by {
                Some(minutes) => client.extend_claim(&id, minutes).await?,
                None => {
                    note_ended(&client, &id).await;
                    client.heartbeat(&id).await?
                }
            };
            output::print(globals.json, &reply, |reply| {
                format!("{} is yours until {:.0}", reply.id, reply.expires_at)
            })?;
            return Ok(0);
        }
        None => {}
    }
    // The command line was refused without it.
    let project = args.project.unwrap_or_default();
    let env = caller_env::read(&args.env)?;
    let body = ClaimRequest {
        task_id: args.task,
        branch: args.branch,
        strict: args.strict.then_some(true),
        miss: args.miss.map(Miss::from),
        wait_ms: args.wait.map(|seconds| seconds.saturating_mul(MS_PER_S)),
        ttl_minutes: args.ttl,
        env: (!env.is_empty()).then_some(env),
        git_identity: args.git.identity(),
        checkpoint: args.checkpoint,
    };
    let ssh_key = args.ssh_key.as_deref().map(ssh::read_public_key).transpose()?;
    let client = connect::client(globals)?;
    let project = connect::project(&client, &project).await?;
    let reply = claim_wait::claim(&client, &project, &body, globals.json).await;
    let reply = reply.map_err(|error| {
        let is_disabled = matches!(&error, ClientError::Api { status: 429, details, .. } if !details.is_empty());
        let failure = Failure::from(error);
        if is_disabled {
            let enable = hint::command(["pool", "set", project.name.as_str(), "--enabled"]);
            return failure.hint(format!("`{enable}`, or the same claim with --wait 600"));
        }
        failure
    })?;
    if !globals.json {
        if reply.stale {
            output::note(&format!(
                "warning: set up by {}; --strict waits for one that is set up by the new one",
                stale(&reply)
            ));
        }
        let asked = body.branch.as_deref();
        reply
            .repos
            .iter()
            .filter_map(|repo| warning(repo, asked))
            .for_each(|text| output::note(&text));
    }
    if let Some(key) = ssh_key
        && let Err(error) = client.allow_ssh(&reply.id, &key).await
    {
        let (why, _) = Failure::from(error).into_parts();
        output::note(&format!(
            "warning: the VM is yours, and the SSH key does not open it: {why}"
        ));
    }
    if args.exec {
        return run_and_release(globals, &client, &reply.id, args.argv).await;
    }
    if args.id_only {
        output::print_line(reply.id.as_str())?;
        return Ok(0);
    }
    output::print(globals.json, &reply, show)?;
    if !globals.json {
        output::note(&format!(
            "next: {} -- <command>, then {}",
            hint::command(["exec", reply.id.as_str()]),
            hint::command(["release", reply.id.as_str()])
        ));
    }
    Ok(0)
}

/// Runs a command in what was claimed, and gives it back however that went.
async fn run_and_release(globals: &Globals, client: &Client, id: &InstanceId, argv: Vec<Word>) -> Result<u8, Failure> {
    let what = ExecRequest {
        argv: Some(argv),
        ..ExecRequest::default()
    };
    let code = exec::run_in(globals, client, id, what, ExecOptions::default()).await;
    let code = exec::apart_from_the_commands(code);
    if let Err(error) = client.release(id).await {
        // The command's own end is what matters.
        output::note(&format!(
            "warning: {id} is still claimed: {error}; `{}`",
            hint::command(["release", id.as_str()])
        ));
    }
    code
}

fn came_from(source: ClaimSource) -> &'static str {
    match source {
        ClaimSource::Ready => "a ready VM of the pool",
        ClaimSource::Fork => "forked for this claim",
        ClaimSource::Joined => "a VM that was already being made",
        ClaimSource::Cold => "made for this claim",
    }
}

fn explain(explained: &ClaimExplained) -> String {
    let mut text = output::pairs([
        ("id", explained.id.to_string()),
        ("project", explained.project_id.to_string()),
        ("claimed", output::ago(explained.claimed_at)),
        ("ended", output::ago_or(explained.ended_at, "not yet")),
        ("came from", came_from(explained.source).to_owned()),
        ("why", words::in_sentence(&clean_line(&explained.why))),
    ]);
    if let Some(hand_over) = &explained.hand_over {
        let row = |phase: &ClaimPhase| [phase.name.clone(), format!("{:.2} ms", phase.ms)];
        let total = ["total".to_owned(), format!("{:.2} ms", hand_over.total_ms)];
        let rows = hand_over.phases.iter().map(row).chain([total]);
        text.push_str("\n\n");
        text.push_str(&output::table(["Phase", "Took"], rows));
    }
    text
}

fn show(reply: &ClaimReply) -> String {
    let mut pairs = vec![
        ("id", reply.id.to_string()),
        ("VM", reply.instance_id.to_string()),
        ("came from", came_from(reply.source).to_owned()),
        ("age", output::millis(reply.age_ms)),
        ("waited", output::millis(reply.wait_ms)),
        ("repositories", checkouts(&reply.repos)),
        ("yours until", lease_end(&reply.id, reply.expires_at)),
    ];
    if reply.stale {
        pairs.insert(5, ("set up by", stale(reply)));
    }
    output::pairs(pairs)
}

/// By what a VM was set up that is not of the set-up as it is now.
fn stale(reply: &ClaimReply) -> String {
    let since = reply
        .stale_since
        .map_or_else(String::new, |at| format!(" (since {at:.0})"));
    let parts: Vec<_> = reply.stale_parts.iter().copied().map(part).collect();
    let parts = match parts.as_slice() {
        [] => String::new(),
        parts => format!("; changed since: {}", parts.join(", ")),
    };
    format!("an older version of the set-up{since}{parts}")
}

fn part(part: SetUpPart) -> &'static str {
    match part {
        SetUpPart::GitIdentity => "who makes commits",
        SetUpPart::Hearth => "Hearth itself",
        SetUpPart::Image => "the image",
        SetUpPart::LegacyHooks => "whether hooks of a .capy/settings.json run (saving a setup object ends that)",
        SetUpPart::ProjectSetup => "the project's commands",
        SetUpPart::Repositories => "the repositories",
        SetUpPart::Scripts => "the scripts",
        SetUpPart::SetupCommands => "the pool's commands",
        SetUpPart::Variables => "the variables",
        SetUpPart::VmSize => "the VM size",
    }
}

/// As much of a commit as git shows.
const SHORT_COMMIT_CHARS: usize = 10;

/// One line per checkout.
pub(super) fn checkouts(repos: &[ClaimedRepo]) -> String {
    let line = |repo: &ClaimedRepo| {
        let (commit, branch) = (short(&repo.commit), clean_line(&repo.branch));
        let text = format!("{} at {} ({branch} {commit})", repo.repo_full_name, repo.path);
        let flags = [
            (repo.branch_missing, "branch missing"),
            (repo.behind, "behind"),
            (repo.gone, "not there any more"),
            (repo.cloned.is_some(), "checked out by the set-up"),
        ];
        flags
            .iter()
            .filter(|(set, _)| *set)
            .fold(text, |text, (_, flag)| format!("{text}, {flag}"))
    };
    output::lines_or_dash(repos.iter().map(line))
}

fn short(commit: &str) -> String {
    commit.chars().take(SHORT_COMMIT_CHARS).collect()
}

/// What a person must know of a repository that is not as was asked for.
fn warning(repo: &ClaimedRepo, asked: Option<&str>) -> Option<String> {
    let (name, branch) = (&repo.repo_full_name, clean_line(&repo.branch));
    let mut parts = Vec::new();
    if repo.gone {
        parts.push(format!(
            "there is no repository at {} any more: the set-up moved or removed it",
            repo.path
        ));
    }
    if repo.branch_missing {
        let asked = asked.map_or_else(
            || "branch of that name".to_owned(),
            |asked| format!("branch `{}`", clean_line(asked)),
        );
        parts.push(format!("it has no {asked}: it is on `{branch}`"));
    }
    if repo.behind {
        let why = repo
            .why
            .as_deref()
            .map_or_else(String::new, |why| format!(": {}", words::in_sentence(&clean_line(why))));
        parts.push(format!("it stays behind its branch, at {}{why}", short(&repo.commit)));
    }
    (!parts.is_empty()).then(|| format!("warning: {name}: {}", parts.join("; ")))
}

/// When a lease ends, and how to extend it.
pub(super) fn lease_end(id: &InstanceId, at: Timestamp) -> String {
    format!(
        "{at:.0} (`{}` renews it)",
        hint::command(["claim", "extend", id.as_str()])
    )
}
