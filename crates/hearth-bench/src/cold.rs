//! Row 3: what a VM costs where nothing is prepared.

use anyhow::Result;
use hearth_api::claim::{ClaimRequest, Miss};

use crate::project::{Project, argv_true};
use crate::{Bench, Row, say};

/// How long a claim may wait for a VM that is made from nothing, milliseconds.
const PATIENCE_MS: u64 = 600_000;
/// What the other rows divide by.
pub(crate) const COLD: &str = "test boot without templates + /bin/true";

/// The project is new: there is no template yet.
pub(crate) async fn measure(bench: &mut Bench, project: &Project) -> Result<()> {
    say("row 3: a claim where nothing is prepared");
    let body = ClaimRequest {
        miss: Some(Miss::Bypass),
        wait_ms: Some(PATIENCE_MS),
        ..ClaimRequest::default()
    };
    let (reply, claimed) = project.claim(&body).await?;
    let first = project.exec(&reply.id, &argv_true()?).await?;
    project.release(&reply.id).await?;
    project.wait_for(0).await?;
    let what = "the first claim ever (makes base, checkpoints, template) + /bin/true";
    bench.report.times(Row::Cold, what, &[claimed + first]);

    say("row 3: test boots without templates");
    let mut took = Vec::new();
    for _ in 0..bench.counts.cold {
        let (id, booted) = project.test_boot(None, false).await?;
        took.push(booted + project.exec(&id, &argv_true()?).await?);
        project.clear().await?;
    }
    bench.report.times(Row::Cold, COLD, &took);
    Ok(())
}
