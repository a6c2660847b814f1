//! Waiting until a pool is full, with a bar on a terminal and a line per change elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use hearth_api::client::Client;
use hearth_api::explain::PoolExplained;
use hearth_api::find::ProjectFound;
use hearth_api::instance::InstanceStatus;
use hearth_api::pool::{PoolView, Status};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::show;
use crate::failure::Failure;
use crate::text::clean_line;
use crate::{boot, hint, output};

/// Pause between two checks.
const POLL_PAUSE: Duration = Duration::from_millis(500);
/// So many failures since the waiting began mean that it will not come about.
const MAX_NEW_FAILURES: u64 = 3;
/// Failures, and nothing being made for so long: nothing will come any more.
const STALLED: Duration = Duration::from_secs(15);
/// Without a clock to look at, how it stands is said again after so long: well within half a minute.
const LONGEST_SILENCE: Duration = Duration::from_secs(25);
/// How often the clock moves.
const TICK: Duration = Duration::from_millis(200);

/// The pool as it is in the end: its view, its explanation at the same moment, and whether it is full.
pub(super) async fn until_full(
    client: &Client,
    project: &ProjectFound,
    limit: Duration,
) -> Result<(PoolView, PoolExplained, bool), Failure> {
    let start = Instant::now();
    let mut picture = Picture::new();
    let mut failed_before = None;
    let mut last_making = Instant::now();
    loop {
        let view = client.get_pool(&project.id).await?;
        if !view.config.as_ref().is_some_and(|config| config.enabled) {
            return Err(
                Failure::new("the pool is not enabled, so it will not fill").hint(format!(
                    "enable it with `{}`",
                    hint::command(["pool", "set", project.name.as_str(), "--enabled"])
                )),
            );
        }
        let (view, explained) = show::both(client, project, view).await?;
        let target = explained.target;
        picture.show(&view.status, target);
        let is_late = start.elapsed() > limit;
        if is_late || view.status.ready >= target {
            picture.done();
            let is_full = view.status.ready >= target;
            if !is_full {
                output::note(&format!("not full after {}", output::duration(limit)));
            }
            return Ok((view, explained, is_full));
        }
        let failures = view
            .status
            .failed
            .saturating_sub(*failed_before.get_or_insert(view.status.failed));
        if view.status.provisioning > 0 {
            last_making = Instant::now();
        }
        let stalled = view.status.failed > 0 && last_making.elapsed() > STALLED;
        if failures >= MAX_NEW_FAILURES || stalled {
            picture.done();
            return Err(Failure::new(format!(
                "the pool does not fill: {} failed",
                output::count(view.status.failed, "VM")
            ))
            .detail(last_failure(client, project).await)
            .hint(format!(
                "see `{}`, and try with `{}`",
                hint::command(["pool", "instances", project.name.as_str()]),
                hint::command(["pool", "test", project.name.as_str()])
            )));
        }
        tokio::time::sleep(POLL_PAUSE).await;
    }
}

async fn last_failure(client: &Client, project: &ProjectFound) -> String {
    let newest = client
        .list_instances(&project.id, Some(1), Some(InstanceStatus::Failed))
        .await;
    let reason = match newest.ok().and_then(|items| items.items.into_iter().next()) {
        Some(item) => match client.get_instance(&project.id, &item.id).await {
            Ok(detail) => boot::failure(&detail),
            Err(_) => item.failure_reason,
        },
        None => None,
    };
    clean_line(reason.as_deref().unwrap_or("the reason is not known"))
}

struct Picture {
    bar: Option<ProgressBar>,
    last: Option<Status>,
    said: Instant,
}

impl Picture {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:20} {pos}/{len} ready  {msg}  {elapsed}");
            let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr());
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(TICK);
            bar
        });
        Self {
            bar,
            last: None,
            said: Instant::now(),
        }
    }

    fn show(&mut self, status: &Status, target: u64) {
        match &self.bar {
            Some(bar) => {
                bar.set_length(target);
                bar.set_position(status.ready);
                bar.set_message(show::counts(status));
            }
            None if self.last != Some(*status) || self.said.elapsed() >= LONGEST_SILENCE => {
                output::note(&format!("of {target}: {}", show::counts(status)));
                self.said = Instant::now();
            }
            None => {}
        }
        self.last = Some(*status);
    }

    fn done(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
