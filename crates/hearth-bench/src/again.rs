//! Row 7: a user works on the set-up and tests it again and again.

use std::time::Duration;

use anyhow::Result;
use hearth_api::pool::SetupCommand;

use crate::project::{OWN_TIME, Project, commands};
use crate::report::names;
use crate::{Bench, Row, say};

pub(crate) async fn measure(bench: &mut Bench, project: &Project) -> Result<()> {
    say("row 7: test boots again");
    let rounds = bench.counts.again;
    let mut took = Vec::new();
    for _ in 0..rounds {
        took.push(boot(project, None).await?);
    }
    bench.report.times(Row::Again, names::UNCHANGED, &took);

    let mut took = Vec::new();
    for round in 1..=rounds {
        took.push(boot(project, Some(commands(0, round)?)).await?);
    }
    bench.report.times(Row::Again, names::LAST, &took);
    let over: Vec<Duration> = took.iter().map(|took| took.saturating_sub(OWN_TIME)).collect();
    bench.report.times(Row::Again, names::LAST_OVER, &over);

    let mut took = Vec::new();
    for round in 1..=rounds {
        took.push(boot(project, Some(commands(round, 0)?)).await?);
    }
    bench
        .report
        .times(Row::Again, "test boot, first of three commands changed", &took);

    let mut took = Vec::new();
    for round in 1..=rounds {
        project.commit(round).await?;
        took.push(boot(project, None).await?);
    }
    bench.report.times(Row::Again, "test boot, the repository moved", &took);
    let mut took = Vec::new();
    for _ in 0..bench.counts.cold {
        let (_, booted) = project.test_boot(None, false).await?;
        took.push(booted);
        project.clear().await?;
    }
    bench.report.times(Row::Again, "test boot without cache", &took);
    let own = format!(
        "the first and the last command each take {} s by themselves: they wait",
        OWN_TIME.as_secs()
    );
    bench.report.note(Row::Again, own);
    // The rows after this one work with the first set-up.
    project.set_commands(commands(0, 0)?).await?;
    project.make_template().await
}

async fn boot(project: &Project, commands: Option<Vec<SetupCommand>>) -> Result<Duration> {
    let (_, took) = project.test_boot(commands, true).await?;
    project.clear().await?;
    Ok(took)
}
