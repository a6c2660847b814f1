//! Row 4: what a user would pick instead, each with the same tools and the same prepared repository, in turns with claims.
//! Whatever cannot run here is said with its reason.

mod incus;
mod nspawn;
mod podman;
mod tree;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hearth_api::claim::ClaimSource;
use tokio::process::Command;

use crate::claims::{self, POOL};
use crate::project::{ANSWER, Project};
use crate::report::names;
use crate::{Bench, Row, say};

/// How long one step of a program that is compared may take: unpacking an image on a busy machine.
const STEP_LIMIT: Duration = Duration::from_secs(300);
/// What everything is called that is made with other people's programs.
const NAME: &str = "hearth-bench";

/// The commands, as in the other rows: the one that only starts, and the one of a shell.
const COMMANDS: [&str; 2] = ["/bin/true", "bash -c 'cat FILE'"];

fn words(at: usize) -> Vec<String> {
    if at == 0 {
        vec!["/bin/true".to_owned()]
    } else {
        vec!["bash".to_owned(), "-c".to_owned(), format!("cat {ANSWER}")]
    }
}

/// One way to get a machine and run a command in it.
enum Way {
    Podman(podman::Podman),
    Incus(incus::Incus),
    Nspawn(nspawn::Nspawn),
    Hearth,
    HearthByCommands,
}

impl Way {
    fn name(&self) -> &'static str {
        match self {
            Self::Podman(_) => "podman run + exec (runc)",
            Self::Incus(_) => "incus copy + start + exec",
            Self::Nspawn(_) => "systemd-nspawn, volatile overlay",
            Self::Hearth => "Hearth: claim + exec, by HTTP",
            Self::HearthByCommands => "Hearth: hearth claim + hearth exec",
        }
    }

    /// From nothing to the command's end; the machine is gone afterwards.
    async fn run(&self, project: &Project, at: usize, round: usize) -> Result<Duration> {
        // Else the pool's making up for the claim before would be in everybody's time.
        project.wait_for(POOL).await?;
        match self {
            Self::Podman(podman) => podman.run(&words(at), round).await,
            Self::Incus(incus) => incus.run(&words(at), round).await,
            Self::Nspawn(nspawn) => nspawn.run(&words(at)).await,
            Self::Hearth => {
                let taken = claims::take(project, at, ClaimSource::Ready).await?;
                Ok(taken.claim + taken.command)
            }
            Self::HearthByCommands => by_commands(project, &words(at)).await,
        }
    }
}

pub(crate) async fn measure(bench: &mut Bench, project: &Project) -> Result<()> {
    say("row 4: making the same tree for the others");
    let folder = folder(&bench.args.folder);
    let mut ways = Vec::new();
    match tree::make(&bench.args.images, &folder, project).await {
        Ok(tree) => {
            let podman = podman::Podman::prepare(&folder, &tree).await.map(Way::Podman);
            let incus = incus::Incus::prepare(&folder, &tree).await.map(Way::Incus);
            let nspawn = nspawn::Nspawn::prepare(&tree).await.map(Way::Nspawn);
            for (name, way) in [("podman", podman), ("incus", incus), ("systemd-nspawn", nspawn)] {
                match way {
                    Ok(way) => ways.push(way),
                    Err(error) => bench
                        .report
                        .note(Row::Peers, format!("{name} does not run here: {error:#}")),
                }
            }
        }
        Err(error) => bench
            .report
            .note(Row::Peers, format!("nothing to compare with: {error:#}")),
    }
    ways.push(Way::Hearth);
    ways.push(Way::HearthByCommands);
    project.set_target(POOL).await?;
    project.wait_for(POOL).await?;
    let mut took = vec![[Vec::new(), Vec::new()]; ways.len()];
    let mut broken: Vec<Option<String>> = vec![None; ways.len()];
    say("row 4: in turns");
    for round in 0..bench.counts.peers {
        for (way, (took, broken)) in ways.iter().zip(took.iter_mut().zip(&mut broken)) {
            for (at, took) in took.iter_mut().enumerate() {
                if broken.is_some() {
                    continue;
                }
                match way.run(project, at, round).await {
                    Ok(time) => took.push(time),
                    Err(error) => *broken = Some(format!("{error:#}")),
                }
            }
        }
    }
    for way in &ways {
        if let Way::Incus(incus) = way
            && bench.wants(Row::Work)
        {
            let pushed = incus.push(bench.counts.work).await?;
            bench.report.times(Row::Work, names::INCUS_PUSH, &pushed);
        }
    }
    project.set_target(0).await?;
    project.clear().await?;
    for (way, (took, broken)) in ways.iter().zip(took.iter().zip(&broken)) {
        for (command, took) in COMMANDS.iter().zip(took) {
            bench
                .report
                .times(Row::Peers, &format!("{}, {command}", way.name()), took);
        }
        if let Some(reason) = broken {
            bench
                .report
                .note(Row::Peers, format!("{} failed: {reason}", way.name()));
        }
    }
    compare(bench);
    for way in &ways {
        if let Way::Incus(incus) = way {
            bench
                .report
                .note(Row::Peers, format!("incus: storage {}", incus.storage));
        }
    }
    Ok(())
}

fn compare(bench: &mut Bench) {
    let pairs = [
        (
            "podman run + exec (runc)",
            [names::PODMAN_RATIO, names::PODMAN_RATIO_CAT],
        ),
        (
            "incus copy + start + exec",
            [names::INCUS_RATIO, names::INCUS_RATIO_CAT],
        ),
        (
            "systemd-nspawn, volatile overlay",
            [
                "systemd-nspawn / Hearth, /bin/true",
                "systemd-nspawn / Hearth, bash -c 'cat FILE'",
            ],
        ),
    ];
    for (way, ratios) in pairs {
        for (command, ratio) in COMMANDS.iter().zip(ratios) {
            let of = |name: &str| bench.report.p50(Row::Peers, &format!("{name}, {command}"));
            let (theirs, ours) = (of(way), of("Hearth: claim + exec, by HTTP"));
            if let (Some(theirs), Some(ours)) = (theirs, ours) {
                bench
                    .report
                    .figure(Row::Peers, ratio, crate::report::Unit::Times, theirs / ours);
            }
        }
    }
}

/// As a person does it, two programs of Hearth's one after the other.
async fn by_commands(project: &Project, words: &[String]) -> Result<Duration> {
    let name = project.id.as_str();
    let begin = Instant::now();
    let id = output(project.server.command().args(["claim", name, "--id-only"])).await?;
    let id = id.trim();
    output(
        project
            .server
            .command()
            .args(["exec", "--no-stdin", id, "--"])
            .args(words),
    )
    .await?;
    let took = begin.elapsed();
    output(project.server.command().args(["release", id])).await?;
    Ok(took)
}

/// Everything of other people's programs lies there.
fn folder(bench: &Path) -> PathBuf {
    bench.join("peers")
}

/// Ends what is left of containers, however the bench ended.
pub(crate) async fn clean(bench: &Path) {
    let folder = folder(bench);
    if !folder.exists() {
        return;
    }
    for cleaned in [podman::clean(&folder).await, incus::clean(&folder).await] {
        if let Err(error) = cleaned {
            eprintln!("error: tidying up: {error:#}");
        }
    }
}

/// What a program prints. It must succeed.
pub(crate) async fn output(command: &mut Command) -> Result<String> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let ended = command
        .stdin(Stdio::null())
        .kill_on_drop(true)
        // Ctrl-C is for us; we end it.
        .process_group(0)
        .output();
    let output = tokio::time::timeout(STEP_LIMIT, ended)
        .await
        .with_context(|| format!("{program} took too long"))?
        .with_context(|| format!("{program} cannot be started"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.trim().lines().last().unwrap_or_default().to_owned();
        bail!("{program} failed ({}): {last}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
