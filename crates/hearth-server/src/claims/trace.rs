//! The trace of a claim: what was ready, where its time went, and the message that explains it.

use hearth_api::claim::{ClaimReply, ClaimSource, Miss};
use hearth_api::explain::{ClaimExplained, ClaimPhase, HandOver, SkippedInstance};
use hearth_api::ids::InstanceId;
use hearth_core::claim::{ClaimOrder, ClaimView, MissFacts, Next, Ready};
use hearth_core::redact::Redacted;
use tokio::time::{Duration, Instant};

use crate::store::{ClaimRow, ReadyCount};

/// One hand-over on its way.
#[derive(Debug)]
pub(super) struct Trace {
    began: Instant,
    phase_began: Instant,
    facts: MissFacts,
    skipped: Vec<SkippedInstance>,
    waited: Duration,
    phases: Vec<(&'static str, Duration)>,
}

impl Trace {
    /// The request came then.
    pub(super) fn begin(began: Instant) -> Self {
        Self {
            began,
            phase_began: began,
            facts: MissFacts::default(),
            skipped: Vec::new(),
            waited: Duration::ZERO,
            phases: Vec::new(),
        }
    }

    /// How long ago the request came.
    pub(super) fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// From here on a VM is taken; until now the claim waited.
    pub(super) fn begin_try(&mut self) {
        self.phases.clear();
        let now = Instant::now();
        self.waited += now - self.phase_began;
        self.phase_began = now;
    }

    /// How many VMs were ready when the claim first checked.
    pub(super) fn note_ready(&mut self, ready: ReadyCount) {
        let count = |ready: u32| usize::try_from(ready).unwrap_or(usize::MAX);
        self.facts.note_ready(Ready {
            any: count(ready.ready),
            target: count(ready.current),
        });
    }

    /// Records what the claim saw when it decided on this step.
    pub(super) fn note_view(&mut self, view: &ClaimView, order: &ClaimOrder, step: &Next) {
        self.facts.note_view(view, order, step);
    }

    /// A phase of the work is done.
    pub(super) fn phase(&mut self, name: &'static str) {
        let now = Instant::now();
        self.phases.push((name, now - self.phase_began));
        self.phase_began = now;
    }

    /// The VM that was taken could not be used.
    pub(super) fn skip(&mut self, id: &InstanceId, reason: &Redacted) {
        let lost: Duration = self.phases.drain(..).map(|(_, length)| length).sum();
        let now = Instant::now();
        self.facts.note_unfit();
        self.skipped.push(SkippedInstance {
            id: id.clone(),
            reason: reason.to_string(),
            ms: in_ms(lost + (now - self.phase_began)),
        });
        self.phase_began = now;
    }

    /// What was taken and was not fit, in the order in which it was tried.
    pub(super) fn skipped(&self) -> &[SkippedInstance] {
        &self.skipped
    }

    /// The VM is handed over: the last phase is done.
    pub(super) fn end(&self, order: &ClaimOrder, source: ClaimSource, current: bool) -> HandOver {
        let phase = |name: &str, ms: f64| ClaimPhase {
            name: name.to_owned(),
            ms,
        };
        let mut phases = vec![phase("wait", in_ms(self.waited))];
        if !self.skipped.is_empty() {
            let lost = self.skipped.iter().map(|skipped| skipped.ms).sum();
            phases.push(phase("skipped", lost));
        }
        phases.extend(self.phases.iter().map(|(name, length)| phase(name, in_ms(*length))));
        let count = |ready: usize| u32::try_from(ready).unwrap_or(u32::MAX);
        HandOver {
            ready: self.facts.ready.map(|ready| count(ready.any)),
            ready_current: self.facts.ready.map(|ready| count(ready.target)),
            strict: order.strict,
            miss: order.miss,
            current,
            template: self.facts.template,
            skipped: self.skipped.clone(),
            cause: (source != ClaimSource::Ready).then(|| self.facts.cause(order)),
            phases,
            total_ms: in_ms(self.phase_began - self.began),
        }
    }
}

/// With hundredths: a hand-over takes a few of them.
fn in_ms(length: Duration) -> f64 {
    (length.as_secs_f64() * 100_000.0).round() / 100.0
}

/// Of a fork of a VM in use, or of a checkpoint with a name.
const FORKED: &str = "no VM of the pool was asked for: it was forked from a claimed VM, or from a named checkpoint";

/// Why a claim got what it got.
#[must_use]
pub fn explain_claim(claim: ClaimRow) -> ClaimExplained {
    ClaimExplained {
        why: match &claim.hand_over {
            None if claim.handed_over && claim.reply.source == ClaimSource::Fork => FORKED.to_owned(),
            seen => why(&claim.reply, seen.as_ref()),
        },
        id: claim.reply.id,
        project_id: claim.project,
        source: claim.reply.source,
        claimed_at: claim.created_at,
        ended_at: claim.ended_at,
        hand_over: claim.hand_over,
    }
}

fn why(reply: &ClaimReply, hand_over: Option<&HandOver>) -> String {
    let Some(seen) = hand_over else {
        return "the VM is not handed over: that is under way, or was broken off and is done when the claim is repeated with its key"
            .to_owned();
    };
    let mut text = match reply.source {
        ClaimSource::Ready => ready(seen),
        ClaimSource::Fork => format!(
            "{}, and there was a template: the VM was forked from it",
            nothing_did(seen)
        ),
        ClaimSource::Joined => format!(
            "{} and {}: the claim waited {} ms for a VM that was being made for the pool",
            nothing_did(seen),
            no_template(seen),
            reply.wait_ms
        ),
        ClaimSource::Cold => format!(
            "{} and {}: a VM was made from nothing for this claim, set-up and all, in {} ms",
            nothing_did(seen),
            no_template(seen),
            reply.wait_ms
        ),
    };
    if !seen.current && reply.source != ClaimSource::Ready {
        text.push_str("; it is of an older recipe, since the target recipe has no template yet");
    }
    for skipped in &seen.skipped {
        text.push_str(&format!(
            "; {} was not fit and was removed: {}",
            skipped.id, skipped.reason
        ));
    }
    text
}

fn ready(seen: &HandOver) -> String {
    let (ready, current) = (seen.ready.unwrap_or_default(), seen.ready_current.unwrap_or_default());
    let which = if seen.current {
        "the oldest of the target recipe was taken"
    } else {
        "none of the target recipe was, so the oldest of an older one was taken (`strict` forbids that)"
    };
    format!("{ready} ready, {current} of the target recipe; {which}")
}

/// Why none of the pool's own would do.
fn nothing_did(seen: &HandOver) -> String {
    match (seen.miss, seen.ready) {
        (Miss::Bypass, _) => "the claim left the pool alone (`miss: bypass`)".to_owned(),
        (_, None | Some(0)) => "none was ready".to_owned(),
        (_, Some(ready)) if seen.strict && seen.ready_current == Some(0) => {
            format!("{ready} ready, none of the target recipe, and the claim was strict")
        }
        (_, Some(ready)) => format!("{ready} ready, but none was left that was fit"),
    }
}

fn no_template(seen: &HandOver) -> &'static str {
    match (seen.template, seen.miss) {
        (None, Miss::Require) => "the claim was not to have one made (`miss: require`)",
        (_, _) if seen.strict => "there was no template of the target recipe",
        _ => "there was no template",
    }
}
