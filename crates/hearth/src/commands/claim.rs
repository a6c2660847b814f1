//! `hearth claim`: take a VM out of a pool.

use std::collections::BTreeMap;

use clap::{Args, ValueEnum};
use hearth_api::claim::{ClaimReply, ClaimRequest, ClaimSource, ClaimedRepo, Miss};
use jiff::Timestamp;

use crate::args::Globals;
use crate::caller_env;
use crate::failure::Failure;
use crate::{connect, output};

/// Milliseconds in a second.
const MS_PER_S: u64 = 1000;

/// `hearth claim`.
#[derive(Debug, Args)]
pub(crate) struct ClaimArgs {
    /// The project's name or id
    project: String,
    /// The task it is for: asking again with the same one gives the same VM
    #[arg(long, value_name = "ID")]
    task: Option<String>,
    /// Check this branch out in every repository that has it
    #[arg(long)]
    branch: Option<String>,
    /// What to do when none is ready: wait for one that is being made or make one (prefer, the default), say so with exit
    /// code 5 (require), or leave the pool alone and make one (bypass). Making one takes time: without --wait, prefer and
    /// bypass make none and say so with exit code 5 too
    #[arg(long, value_enum)]
    miss: Option<MissArg>,
    /// How long to wait for one that is being made, in seconds
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,
    /// Length of the lease in minutes
    #[arg(long, value_name = "MINUTES")]
    ttl: Option<u64>,
    /// Never take one that was made before the last change of the set-up
    #[arg(long)]
    strict: bool,
    /// A variable for this task alone: NAME=VALUE, or NAME to take it from your own environment (use that for secrets);
    /// may be repeated
    #[arg(long = "env", value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Print the instance's id alone
    #[arg(long, conflicts_with = "json")]
    id_only: bool,
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

pub(crate) async fn run(globals: &Globals, args: ClaimArgs) -> Result<u8, Failure> {
    let env: BTreeMap<String, String> = caller_env::read(&args.env)?;
    let body = ClaimRequest {
        task_id: args.task,
        branch: args.branch,
        strict: args.strict.then_some(true),
        miss: args.miss.map(Miss::from),
        wait_ms: args.wait.map(|seconds| seconds.saturating_mul(MS_PER_S)),
        ttl_minutes: args.ttl,
        env: (!env.is_empty()).then_some(env),
    };
    let client = connect::client(globals)?;
    let project = connect::project(&client, &args.project).await?;
    let reply = client.claim(&project.id, &body).await?;
    if args.id_only {
        output::print_line(reply.id.as_str())?;
        return Ok(0);
    }
    output::print(globals.json, &reply, show)?;
    if !globals.json {
        output::note(&format!(
            "next: hearth exec {} -- <command>, then hearth release {}",
            reply.id, reply.id
        ));
    }
    Ok(0)
}

fn show(reply: &ClaimReply) -> String {
    let source = match reply.source {
        ClaimSource::Ready => "it stood ready in the pool",
        ClaimSource::Fork => "forked from the template",
        ClaimSource::Joined => "it was being made already",
        ClaimSource::Cold => "made for this claim",
    };
    output::pairs([
        ("id", reply.id.to_string()),
        ("VM", reply.instance_id.to_string()),
        ("came from", source.to_owned()),
        ("age", output::millis(reply.age_ms)),
        ("waited", output::millis(reply.wait_ms)),
        ("repositories", checkouts(&reply.repos)),
        ("yours until", lease_end(reply.expires_at)),
    ])
}

/// As much of a commit as git shows.
const SHORT_COMMIT_CHARS: usize = 10;

/// One line per checkout.
pub(super) fn checkouts(repos: &[ClaimedRepo]) -> String {
    let line = |repo: &ClaimedRepo| {
        let commit: String = repo.commit.chars().take(SHORT_COMMIT_CHARS).collect();
        format!("{} at {} ({} {commit})", repo.repo_full_name, repo.path, repo.branch)
    };
    output::lines_or_dash(repos.iter().map(line))
}

pub(super) fn lease_end(at: Timestamp) -> String {
    format!("{at:.0} (a heartbeat renews it)")
}
