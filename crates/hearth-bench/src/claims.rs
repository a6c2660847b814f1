//! Row 2: from a request to a VM, and to the first command's end.

use std::time::Duration;

use anyhow::{Result, bail};
use hearth_api::claim::{ClaimReply, ClaimRequest, ClaimSource};

use crate::cold::COLD;
use crate::project::{Project, argv_true, cat_answer};
use crate::report::{Report, names};
use crate::{Bench, Row, say};

/// VMs of the hot pool.
pub(crate) const POOL: usize = 4;
/// A claim from an empty pool may wait that long, milliseconds.
const PATIENCE_MS: u64 = 60_000;

/// A claim and its first command.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    pub(crate) claim: Duration,
    pub(crate) command: Duration,
    /// The same command a second time.
    pub(crate) again: Duration,
}

/// Whether the round is one for `/bin/true`; in the others it is `cat FILE` by a shell.
fn is_argv(round: usize) -> bool {
    round.is_multiple_of(2)
}

/// Claims a VM and runs the round's command in it, twice; the VM stays.
pub(crate) async fn try_out(project: &Project, round: usize, body: &ClaimRequest) -> Result<(ClaimReply, Taken)> {
    let words = if is_argv(round) { argv_true()? } else { cat_answer()? };
    let (reply, claim) = project.claim(body).await?;
    let command = project.exec(&reply.id, &words).await?;
    let again = project.exec(&reply.id, &words).await?;
    let taken = Taken { claim, command, again };
    Ok((reply, taken))
}

/// The same, and the VM is released.
pub(crate) async fn take(project: &Project, round: usize, expected: ClaimSource) -> Result<Taken> {
    let body = ClaimRequest {
        wait_ms: Some(PATIENCE_MS),
        ..ClaimRequest::default()
    };
    let (reply, taken) = try_out(project, round, &body).await?;
    project.release(&reply.id).await?;
    if reply.source != expected {
        bail!("a claim was served from {:?}, not {expected:?}", reply.source);
    }
    Ok(taken)
}

/// The pool is off: each claim gets a fork of its own.
pub(crate) async fn empty(bench: &mut Bench, project: &Project) -> Result<()> {
    say("row 2: claims from an empty pool");
    let (mut claims, mut firsts) = (Vec::new(), Vec::new());
    for _ in 0..bench.counts.empty {
        let taken = take(project, 0, ClaimSource::Fork).await?;
        claims.push(taken.claim);
        firsts.push(taken.claim + taken.command);
        project.wait_for(0).await?;
    }
    bench.report.times(Row::Claim, names::EMPTY_CLAIM, &claims);
    bench.report.times(Row::Claim, names::EMPTY, &firsts);
    Ok(())
}

/// The first claim after a pool was filled.
pub(crate) async fn first(bench: &mut Bench, project: &Project) -> Result<()> {
    say("row 2: the first claim of a filled pool");
    let (mut claims, mut firsts) = (Vec::new(), Vec::new());
    for _ in 0..bench.counts.first {
        project.set_target(POOL).await?;
        project.wait_for(POOL).await?;
        let taken = take(project, 0, ClaimSource::Ready).await?;
        claims.push(taken.claim);
        firsts.push(taken.claim + taken.command);
        project.set_target(0).await?;
        project.clear().await?;
    }
    bench
        .report
        .times(Row::Claim, "claim, first after the pool was filled", &claims);
    let what = "claim + /bin/true, first after the pool was filled";
    bench.report.times(Row::Claim, what, &firsts);
    Ok(())
}

/// A full pool; while the command runs, the pool makes up for what it gave.
pub(crate) async fn hot(bench: &mut Bench, project: &Project) -> Result<()> {
    say("row 2: claims from a hot pool");
    project.set_target(POOL).await?;
    let mut all = Vec::new();
    for round in 0..bench.counts.claims {
        project.wait_for(POOL).await?;
        all.push(take(project, round, ClaimSource::Ready).await?);
    }
    project.set_target(0).await?;
    project.clear().await?;
    let report = &mut bench.report;
    lines(report, Row::Claim, "pool hot", &all);
    report.ratio(
        Row::Claim,
        (Row::Claim, names::CLAIM_TRUE),
        (Row::Claim, names::DRIVER_TRUE),
    );
    report.ratio(
        Row::Claim,
        (Row::Claim, names::CLAIM_CAT),
        (Row::Claim, names::DRIVER_CAT),
    );
    report.ratio(Row::Cold, (Row::Cold, COLD), (Row::Claim, names::CLAIM_TRUE));
    report.ratio(Row::Cold, (Row::Cold, COLD), (Row::Claim, names::EMPTY));
    Ok(())
}

/// The lines of many claims whose commands took turns.
pub(crate) fn lines(report: &mut Report, row: Row, when: &str, all: &[Taken]) {
    let pick = |argv: bool, time: fn(&Taken) -> Duration| -> Vec<Duration> {
        let rounds = all.iter().enumerate().filter(|(round, _)| is_argv(*round) == argv);
        rounds.map(|(_, taken)| time(taken)).collect()
    };
    let claims: Vec<Duration> = all.iter().map(|taken| taken.claim).collect();
    report.times(row, &format!("claim, {when}"), &claims);
    for (argv, what) in [(true, "/bin/true"), (false, "bash -c 'cat FILE'")] {
        let whole = pick(argv, |taken| taken.claim + taken.command);
        report.times(row, &format!("claim + {what}, {when}"), &whole);
        report.times(
            row,
            &format!("{what} a second time, {when}"),
            &pick(argv, |taken| taken.again),
        );
    }
}
