//! A claim that waits says what it waits for: one line that moves on a terminal, a line per change elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use hearth_api::claim::{ClaimReply, ClaimRequest};
use hearth_api::client::{Client, ClientError};
use hearth_api::explain::{InstanceExplained, PoolExplained};
use hearth_api::find::ProjectFound;
use hearth_api::instance::InstanceStatus;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output;
use crate::text::clean_line;

/// A claim that is answered within this time has nothing to tell.
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// Pause between two looks.
const POLL_PAUSE: Duration = Duration::from_secs(2);
/// Without a clock to look at, how it stands is said again after so long: well within half a minute.
const LONGEST_SILENCE: Duration = Duration::from_secs(25);
/// How often the clock moves.
const TICK: Duration = Duration::from_millis(200);

/// Claims, and says meanwhile what the claim waits for; `silent`: says nothing.
pub(super) async fn claim(
    client: &Client,
    project: &ProjectFound,
    body: &ClaimRequest,
    silent: bool,
) -> Result<ClaimReply, ClientError> {
    let reply = client.claim(&project.id, body);
    if silent {
        return reply.await;
    }
    let mut reply = std::pin::pin!(reply);
    let mut screen = Screen::new(&project.name);
    let mut may_look = true;
    let mut pause = FIRST_LOOK;
    loop {
        let look = async {
            tokio::time::sleep(pause).await;
            match may_look {
                true => Some(client.explain_pool(&project.id).await),
                false => None,
            }
        };
        tokio::select! {
            reply = &mut reply => {
                screen.done();
                return reply;
            }
            seen = look => {
                // A token that may only claim sees no pool: its user sees how long it waits.
                may_look &= !matches!(&seen, Some(Err(ClientError::Api { status: 403 | 404, .. })));
                screen.show(seen.and_then(Result::ok).as_ref());
            }
        }
        pause = POLL_PAUSE;
    }
}

struct Screen {
    project: String,
    bar: Option<ProgressBar>,
    began: Instant,
    last: Option<String>,
    said: Instant,
}

impl Screen {
    fn new(project: &str) -> Self {
        Self {
            project: clean_line(project),
            bar: None,
            began: Instant::now(),
            last: None,
            said: Instant::now(),
        }
    }

    fn show(&mut self, seen: Option<&PoolExplained>) {
        let (kind, state) = seen.map(state).unwrap_or_default();
        let project = &self.project;
        let what = match state.as_str() {
            "" => format!("waiting for a VM of {project}"),
            state => format!("waiting for a VM of {project}: {state}"),
        };
        if std::io::stderr().is_terminal() {
            self.bar.get_or_insert_with(bar).set_message(what);
        } else if self.last.as_ref() != Some(&kind) || self.said.elapsed() >= LONGEST_SILENCE {
            let waited = output::whole_seconds(self.began.elapsed());
            output::note(&format!("{what} (for {waited} so far)"));
            self.said = Instant::now();
        }
        self.last = Some(kind);
    }

    fn done(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed}  {wide_msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(TICK);
    bar
}

/// How the pool is while a claim waits: what makes two looks differ in kind, and the text.
fn state(explained: &PoolExplained) -> (String, String) {
    let mut conditions = explained.conditions.iter();
    let disabled = conditions.any(|it| it.status && it.kind == "Disabled");
    let boot = boot(explained);
    let pool = match (&boot, disabled) {
        // That nothing is kept ready is what the claim knows already.
        (Some(_), true) => "one is made for a claim".to_owned(),
        _ => clean_line(&explained.summary),
    };
    let mut parts = vec![pool];
    let mut kinds = parts.clone();
    if let Some((boot, at_work)) = boot.and_then(|boot| Some((boot, boot.at_work.as_ref()?))) {
        parts.push(clean_line(&format!("{}: {}", boot.id, at_work.message)));
        kinds.push(format!("{} {}", boot.id, at_work.what.as_deref().unwrap_or_default()));
    }
    let others = explained.waiting_claims.saturating_sub(1);
    if others > 0 {
        let queue = format!("{} in the queue with it", output::count(others, "other claim"));
        kinds.push(queue.clone());
        parts.push(queue);
    }
    (kinds.join("; "), parts.join("; "))
}

/// The boot that a claim waits on: of those that are made for the pool or for claims, the one that is furthest.
fn boot(explained: &PoolExplained) -> Option<&InstanceExplained> {
    let being_made = |it: &&InstanceExplained| it.status == InstanceStatus::Provisioning && !it.is_test;
    let runs = |it: &InstanceExplained| it.at_work.as_ref().is_some_and(|at_work| at_work.what.is_some());
    let boots = explained.instances.iter().filter(being_made);
    boots.max_by_key(|it| (runs(it), it.current, it.age_ms))
}
