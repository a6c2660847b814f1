//! Rows 5 and 6: a pool of 20 fills, what its VMs cost, claims one after the other while no VM is replaced, and 50 at once.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures::future::try_join_all;
use hearth_api::claim::{ClaimRequest, ClaimSource};
use hearth_api::project::PatchProject;

use crate::claims;
use crate::project::{Project, argv_true};
use crate::report::{Unit, names};
use crate::{Bench, Row, say, vm};

/// The largest pool.
const POOL: usize = 20;
/// Claims at once.
const BURST: usize = 50;
/// How long each of them may wait, milliseconds.
const PATIENCE_MS: u64 = 120_000;
/// A VM costs so much that this many fit; MiB.
const GIB: f64 = 1024.0;

pub(crate) async fn measure(bench: &mut Bench, project: &Project) -> Result<()> {
    let rounds = if bench.wants(Row::Fill) { bench.counts.fills } else { 1 };
    let mut fills = Vec::new();
    for round in 0..rounds {
        say("row 5: filling a pool of 20");
        let begin = Instant::now();
        project.set_target(POOL).await?;
        project.wait_for_ready(POOL).await?;
        fills.push(begin.elapsed());
        project.wait_for(POOL).await?;
        if round + 1 < rounds {
            project.set_target(0).await?;
            project.clear().await?;
        }
    }
    if bench.wants(Row::Fill) {
        bench.report.times(Row::Fill, names::FILL, &fills);
        for bare in [names::FORKS_IN_A_ROW, names::BARE_IN_A_ROW] {
            bench
                .report
                .ratio(Row::Fill, (Row::Fill, names::FILL), (Row::Fork, bare));
        }
    }
    if bench.wants(Row::Memory) {
        memory(bench, project)?;
    }
    if bench.wants(Row::Fill) {
        undisturbed(bench, project).await?;
        burst(bench, project).await?;
    }
    project.set_target(0).await?;
    project.clear().await
}

fn memory(bench: &mut Bench, project: &Project) -> Result<()> {
    let (mut private, mut share) = (Vec::new(), Vec::new());
    for folder in vm::folders(&project.server.data) {
        let memory = vm::memory(vm::pid(&folder)?)?;
        private.push(memory.private);
        share.push(memory.share);
    }
    let report = &mut bench.report;
    report.values(Row::Memory, names::MEMORY, Unit::Mib, private);
    report.values(Row::Memory, "warm, paused VM: private + share (PSS)", Unit::Mib, share);
    if let Some(private) = report.p50(Row::Memory, names::MEMORY) {
        report.figure(
            Row::Memory,
            "warm VMs per GiB, by private memory",
            Unit::Count,
            GIB / private,
        );
    }
    report.ratio(
        Row::Memory,
        (Row::Memory, names::MEMORY),
        (Row::Memory, names::BARE_MEMORY),
    );
    Ok(())
}

/// All 20 are claimed one after the other, and a limit keeps the pool from making others meanwhile: how long a claim takes
/// that has the machine to itself.
async fn undisturbed(bench: &mut Bench, project: &Project) -> Result<()> {
    say("row 5: claims one after the other, nothing made anew");
    limit(project, Some(u32::try_from(POOL)?)).await?;
    let (mut all, mut ids) = (Vec::new(), Vec::new());
    for round in 0..POOL {
        let (reply, taken) = claims::try_out(project, round, &ClaimRequest::default()).await?;
        all.push(taken);
        ids.push(reply.id);
    }
    claims::lines(&mut bench.report, Row::Fill, "20 in a row, nothing made anew", &all);
    project.set_target(0).await?;
    for id in &ids {
        project.release(id).await?;
    }
    project.clear().await?;
    limit(project, None).await?;
    project.set_target(POOL).await?;
    project.wait_for(POOL).await
}

async fn limit(project: &Project, vms: Option<u32>) -> Result<()> {
    let body = PatchProject {
        max_vms: Some(vms),
        ..PatchProject::default()
    };
    project.server.client.patch_project(&project.id, &body).await?;
    Ok(())
}

async fn burst(bench: &mut Bench, project: &Project) -> Result<()> {
    say("row 5: 50 claims at once on 20 VMs");
    let body = ClaimRequest {
        wait_ms: Some(PATIENCE_MS),
        ..ClaimRequest::default()
    };
    let begin = Instant::now();
    let claims = try_join_all((0..BURST).map(|_| async {
        let (reply, claim) = project.claim(&body).await?;
        let first = project.exec(&reply.id, &argv_true()?).await?;
        anyhow::Ok((reply, claim, claim + first))
    }));
    let claims = claims.await?;
    let all = begin.elapsed();
    let report = &mut bench.report;
    for (source, word) in [
        (ClaimSource::Ready, "ready"),
        (ClaimSource::Fork, "fork"),
        (ClaimSource::Joined, "joined"),
        (ClaimSource::Cold, "cold"),
    ] {
        let of_source = || claims.iter().filter(|(reply, ..)| reply.source == source);
        let took: Vec<Duration> = of_source().map(|(_, claim, _)| *claim).collect();
        let first: Vec<Duration> = of_source().map(|(_, _, first)| *first).collect();
        report.times(Row::Fill, &format!("burst of 50: claim, source: {word}"), &took);
        report.times(
            Row::Fill,
            &format!("burst of 50: claim + /bin/true, source: {word}"),
            &first,
        );
    }
    report.times(Row::Fill, "burst of 50: all served and all commands done", &[all]);
    project.set_target(0).await?;
    for (reply, ..) in &claims {
        project.release(&reply.id).await?;
    }
    project.clear().await
}
