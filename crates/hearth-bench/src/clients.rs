//! Row 9: programs of others. The first command of a warm VM through E2B's own Python client, unmodified, beside Hearth's own client; and an
//! order of a cloud agent's service, from the hook's start to the worker that runs.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hearth_api::claim::ClaimRequest;
use hearth_api::exec::ExecRequest;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::claims::POOL;
use crate::project::Project;
use crate::report::names;
use crate::{Bench, Row, say};

const SCRIPT: &str = include_str!("e2b_client.py");
/// The command that both run by `bash -c`.
const COMMAND: &str = "true";
/// What the worker of an order does first: with this file it is registered.
const REGISTERED: &str = "/run/registered";

/// The Python program, which makes a sandbox for each line that it is given.
struct Sdk {
    /// Ends with this value.
    _child: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Sdk {
    async fn start(python: &Path, project: &Project) -> Result<Self> {
        let mut variables = project.server.command();
        variables.args(["--json", "--url", &project.server.url, "env", "e2b"]);
        let variables = variables.output().await?.stdout;
        let variables: BTreeMap<String, String> =
            serde_json::from_slice(&variables).context("`hearth env e2b` printed no variables")?;
        let mut child = Command::new(python)
            .args(["-c", SCRIPT])
            .envs(variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{} cannot be started", python.display()))?;
        let orders = child.stdin.take().context("the client has no standard input")?;
        let answers = child.stdout.take().context("the client has no standard output")?;
        Ok(Self {
            _child: child,
            orders,
            answers: BufReader::new(answers).lines(),
        })
    }

    /// How long a sandbox took, and how long until its first command had ended.
    async fn take(&mut self, template: &str) -> Result<(Duration, Duration)> {
        self.orders.write_all(format!("{template}\n").as_bytes()).await?;
        let line = self.answers.next_line().await?;
        let line = line.context("E2B's client ended; its error is above")?;
        let mut seconds = line.split(' ').map(str::parse::<f64>);
        let mut next = || -> Result<Duration> {
            let seconds = seconds.next().context("E2B's client printed too little")??;
            Ok(Duration::try_from_secs_f64(seconds)?)
        };
        Ok((next()?, next()?))
    }
}

pub(crate) async fn measure(bench: &mut Bench, project: &Project) -> Result<()> {
    project.set_target(POOL).await?;
    orders(bench, project).await?;
    through_sdk(bench, project).await?;
    project.set_target(0).await?;
    project.clear().await
}

/// Orders one after the other, each with a full pool.
async fn orders(bench: &mut Bench, project: &Project) -> Result<()> {
    say("row 9: orders of a cloud agent's service");
    let worker = format!("touch {REGISTERED}; exec sleep 600");
    let wait_for_worker = ExecRequest {
        command: Some(format!("until test -e {REGISTERED}; do sleep 0.005; done").try_into()?),
        ..ExecRequest::default()
    };
    let (mut hooks, mut workers) = (Vec::new(), Vec::new());
    for round in 0..bench.counts.clients {
        project.wait_for(POOL).await?;
        let order = format!("order-{round}");
        let begin = Instant::now();
        let mut hook = project.server.command();
        hook.args(["--url", &project.server.url, "relay", "command", "--order", &order])
            .args(["--project", project.id.as_str(), "--", "sh", "-c", &worker]);
        let ended = hook.output().await?;
        hooks.push(begin.elapsed());
        if !ended.status.success() {
            bail!("the relay's hook failed: {}", String::from_utf8_lossy(&ended.stderr));
        }
        let claims = project.server.client.list_claims(Some(&project.id)).await?;
        let claim = claims
            .items
            .into_iter()
            .find(|claim| claim.task_id.as_deref() == Some(&order));
        let claim = claim.context("the order has no claim")?;
        project.exec(&claim.id, &wait_for_worker).await?;
        workers.push(begin.elapsed());
        project.release(&claim.id).await?;
    }
    let report = &mut bench.report;
    report.times(Row::Clients, names::HOOK, &hooks);
    report.times(Row::Clients, names::WORKER, &workers);
    Ok(())
}

/// Sandboxes of E2B's client and claims of our own take turns.
async fn through_sdk(bench: &mut Bench, project: &Project) -> Result<()> {
    let Some(python) = bench.args.e2b.clone() else {
        say("a part of row 9 is left out: E2B's client is not on this machine");
        return Ok(());
    };
    say("row 9: first command through E2B's client");
    project.wait_for(POOL).await?;
    let mut sdk = Sdk::start(&python, project).await?;
    // The first one imports modules and opens connections.
    sdk.take(&project.id.to_string()).await?;
    let command = ExecRequest {
        command: Some(COMMAND.to_owned().try_into()?),
        ..ExecRequest::default()
    };
    let (mut created, mut through, mut own) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.counts.clients {
        project.wait_for(POOL).await?;
        let (create, command_ended) = sdk.take(&project.id.to_string()).await?;
        created.push(create);
        through.push(command_ended);
        project.wait_for(POOL).await?;
        let (reply, claim) = project.claim(&ClaimRequest::default()).await?;
        own.push(claim + project.exec(&reply.id, &command).await?);
        project.release(&reply.id).await?;
    }
    let report = &mut bench.report;
    report.times(Row::Clients, "Sandbox.create of E2B's client, pool hot", &created);
    report.times(Row::Clients, names::SDK, &through);
    report.times(Row::Clients, names::OWN, &own);
    report.ratio(Row::Clients, (Row::Clients, names::SDK), (Row::Clients, names::OWN));
    Ok(())
}
