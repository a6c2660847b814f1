//! A claim that waits says what it waits for: one line that moves on a terminal, a short line per change elsewhere. A claim that has
//! its VM waits for nobody any more: its checkouts are brought up to date, and scripts run in it.

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
/// Pause between two checks.
const POLL_PAUSE: Duration = Duration::from_secs(2);
/// And at least so many times as long as the look took: claims that wait together must not be what keeps the server busy.
const PAUSE_PER_LOOK: u32 = 10;
/// Without a clock to look at, how it stands is said again after so long: well within half a minute.
const LONGEST_SILENCE: Duration = Duration::from_secs(25);
/// Most characters of a line where there is no terminal: it is read in a log.
const LONGEST_LINE: usize = 160;
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
            let began = Instant::now();
            let seen = match may_look {
                true => Some(client.explain_pool(&project.id).await),
                false => None,
            };
            (seen, began.elapsed())
        };
        tokio::select! {
            reply = &mut reply => {
                screen.done();
                return reply;
            }
            (seen, took) = look => {
                pause = POLL_PAUSE.max(took.saturating_mul(PAUSE_PER_LOOK)).min(LONGEST_SILENCE);
                // A token that may only claim sees no pool: its user sees how long it waits.
                may_look &= !matches!(&seen, Some(Err(ClientError::Api { status: 403 | 404, .. })));
                screen.show(seen.and_then(Result::ok).as_ref(), body.strict == Some(true));
            }
        }
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

    fn show(&mut self, seen: Option<&PoolExplained>, strict: bool) {
        let waited = self.began.elapsed();
        let state = seen.map(|seen| state(seen, strict, waited)).unwrap_or_default();
        let project = &self.project;
        let what = match (state.has_its_vm, state.text.as_str()) {
            (true, text) => text.to_owned(),
            (false, "") => format!("waiting for a VM of {project}"),
            (false, text) => format!("waiting for a VM of {project}: {text}"),
        };
        if std::io::stderr().is_terminal() {
            self.bar.get_or_insert_with(bar).set_message(what);
        } else if self.last.as_ref() != Some(&state.kind) || self.said.elapsed() >= LONGEST_SILENCE {
            let waited = output::whole_seconds(waited);
            output::note(&format!("{} (for {waited} so far)", clipped(&what, LONGEST_LINE)));
            self.said = Instant::now();
        }
        self.last = Some(state.kind);
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

/// What a claim waits for.
#[derive(Debug, Default)]
struct State {
    /// What makes two looks differ in kind.
    kind: String,
    text: String,
    /// Not for a VM: for what is done in the one it has.
    has_its_vm: bool,
}

fn state(explained: &PoolExplained, strict: bool, waited: Duration) -> State {
    match own_vm(explained, strict, waited) {
        Some(own) => State {
            kind: own.clone(),
            text: own,
            has_its_vm: true,
        },
        None => in_the_queue(explained),
    }
}

/// That the claim has its VM, and what is done in it. One that takes what the pool has stands in no queue while something is ready.
fn own_vm(explained: &PoolExplained, strict: bool, waited: Duration) -> Option<String> {
    let in_the_queue = explained.waiting_claims > 0 && (strict || explained.status.ready == 0);
    let since = |it: &InstanceExplained| Duration::from_millis(it.since_ms);
    let taken = |it: &&InstanceExplained| it.status == InstanceStatus::Claimed && since(it) <= waited;
    let mut taken = explained.instances.iter().filter(taken);
    let first = taken.next().filter(|_| !in_the_queue)?;
    // Of several that were claimed meanwhile this client does not know its own.
    let which = match taken.next() {
        None => format!("your VM {} is there", first.id),
        Some(_) => "your VM is there".to_owned(),
    };
    Some(format!(
        "{which}: its checkouts are brought up to date, and updateAfterCheckout runs where the set-up has it"
    ))
}

/// How the pool is, and what is done for the claim.
fn in_the_queue(explained: &PoolExplained) -> State {
    let mut conditions = explained.conditions.iter();
    let disabled = conditions.any(|it| it.status && it.kind == "Disabled");
    let boot = boot(explained);
    let pool = match (&boot, disabled) {
        // That nothing is kept ready is what the claim knows already.
        (Some(_), true) => "one is made for a claim".to_owned(),
        _ => clean_line(explained.summary.split(';').next().unwrap_or_default()),
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
    State {
        kind: kinds.join("; "),
        text: parts.join("; "),
        has_its_vm: false,
    }
}

/// At most so many characters.
fn clipped(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", text[..end].trim_end()),
        None => text.to_owned(),
    }
}

/// The boot that a claim waits on: of those that are made for the pool or for claims, the one that is furthest.
fn boot(explained: &PoolExplained) -> Option<&InstanceExplained> {
    let being_made = |it: &&InstanceExplained| it.status == InstanceStatus::Provisioning && !it.is_test;
    let runs = |it: &InstanceExplained| it.at_work.as_ref().is_some_and(|at_work| at_work.what.is_some());
    let boots = explained.instances.iter().filter(being_made);
    boots.max_by_key(|it| (runs(it), it.current, it.age_ms))
}
