//! What is counted as it happens.

use hearth_api::claim::ClaimSource;
use hearth_api::event::{Event, EventKind};
use hearth_api::explain::MissCause;
use prometheus::proto::MetricFamily;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};
use serde_json::Value;

use super::labels::Projects;

/// Buckets of claims and their phases, seconds: a warm one takes some hundredths, a cold one minutes.
const CLAIM_BUCKETS: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0];
/// Buckets of steps, seconds.
const STEP_BUCKETS: [f64; 10] = [0.1, 0.5, 1.0, 5.0, 15.0, 30.0, 60.0, 300.0, 900.0, 3600.0];
/// Milliseconds in a second.
const MS_PER_S: f64 = 1000.0;
/// What a claim that was refused has in place of where its VM came from.
const NO_TIER: &str = "none";
/// Outcome of a claim that was answered.
const HANDED_OVER: &str = "success";

/// Counters and histograms. Clones count together.
#[derive(Debug, Clone)]
pub(super) struct Counted {
    registry: Registry,
    events: IntCounterVec,
    claims: IntCounterVec,
    misses: IntCounterVec,
    claim_duration: HistogramVec,
    claim_phase: HistogramVec,
    preparations: IntCounterVec,
    step_duration: HistogramVec,
    vms_ended: IntCounterVec,
    checkpoints_damaged: IntCounterVec,
}

impl Counted {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let made = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(made.clone()))?;
            Ok::<_, prometheus::Error>(made)
        };
        let histogram = |name: &str, help: &str, labels: &[&str], buckets: &[f64]| {
            let made = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)?;
            registry.register(Box::new(made.clone()))?;
            Ok::<_, prometheus::Error>(made)
        };
        Ok(Self {
            events: counter("hearth_events_total", "Events since the server started.", &["kind"])?,
            claims: counter(
                "hearth_claims_total",
                "Claims by where their VM came from (tier) and how they ended: success, or the code of the refusal.",
                &["project", "tier", "outcome"],
            )?,
            misses: counter(
                "hearth_claim_misses_total",
                "Claims that got no ready VM of the pool, by their one cause.",
                &["project", "cause"],
            )?,
            claim_duration: histogram(
                "hearth_claim_duration_seconds",
                "From the request to the reply of claims that were answered, by where their VM came from.",
                &["project", "tier"],
                &CLAIM_BUCKETS,
            )?,
            claim_phase: histogram(
                "hearth_claim_phase_duration_seconds",
                "Parts of claims that were answered: waiting, taking, resuming, checkouts, scripts.",
                &["phase"],
                &CLAIM_BUCKETS,
            )?,
            preparations: counter(
                "hearth_preparations_total",
                "Instances that were made, by what for and how it ended: ready or failed.",
                &["project", "purpose", "outcome"],
            )?,
            step_duration: histogram(
                "hearth_preparation_duration_seconds",
                "Steps of making instances.",
                &["step", "outcome"],
                &STEP_BUCKETS,
            )?,
            vms_ended: counter(
                "hearth_claimed_vms_ended_total",
                "VMs that ended by themselves while they were claimed.",
                &["project"],
            )?,
            checkpoints_damaged: counter(
                "hearth_checkpoints_damaged_total",
                "Checkpoints that were found damaged.",
                &["project"],
            )?,
            registry,
        })
    }

    pub(super) fn gather(&self) -> Vec<MetricFamily> {
        self.registry.gather()
    }

    /// A project is known: its rare counters begin at 0, because the growth of one that begins at 1 cannot be seen.
    pub(super) fn begin(&self, project: &str) {
        for tier in ClaimSource::ALL {
            self.claims.with_label_values(&[project, tier.as_str(), HANDED_OVER]);
        }
        for cause in MissCause::ALL {
            self.misses.with_label_values(&[project, cause.as_str()]);
        }
        self.vms_ended.with_label_values(&[project]);
        self.checkpoints_damaged.with_label_values(&[project]);
    }

    pub(super) fn claim_refused(&self, project: &str, code: &str) {
        self.claims.with_label_values(&[project, NO_TIER, code]).inc();
    }

    /// Counts an event.
    pub(super) fn event(&self, event: &Event, projects: &Projects) {
        self.events.with_label_values(&[event.kind.as_str()]).inc();
        let project = projects.label(&event.project_id);
        let detail = &event.detail;
        match event.kind {
            EventKind::ClaimHandedOver => self.handed_over(project, detail),
            EventKind::InstanceReady => self.prepared(project, detail, "ready"),
            EventKind::InstanceFailed => self.prepared(project, detail, "failed"),
            EventKind::InstanceStep => {
                if let Some(ms) = detail["durationMs"].as_f64() {
                    let labels = [text(&detail["step"]), text(&detail["status"])];
                    self.step_duration.with_label_values(&labels).observe(ms / MS_PER_S);
                }
            }
            EventKind::InstanceEnded => self.vms_ended.with_label_values(&[project]).inc(),
            EventKind::CheckpointDamaged => self.checkpoints_damaged.with_label_values(&[project]).inc(),
            _ => {}
        }
    }

    fn handed_over(&self, project: &str, detail: &Value) {
        let tier = text(&detail["source"]);
        self.claims.with_label_values(&[project, tier, HANDED_OVER]).inc();
        if let Some(cause) = detail["cause"].as_str() {
            self.misses.with_label_values(&[project, cause]).inc();
        }
        let total = detail["totalMs"].as_f64().or_else(|| detail["waitMs"].as_f64());
        if let Some(ms) = total {
            self.claim_duration
                .with_label_values(&[project, tier])
                .observe(ms / MS_PER_S);
        }
        for (phase, ms) in detail["phasesMs"].as_object().into_iter().flatten() {
            if let Some(ms) = ms.as_f64() {
                self.claim_phase
                    .with_label_values(&[phase.as_str()])
                    .observe(ms / MS_PER_S);
            }
        }
    }

    fn prepared(&self, project: &str, detail: &Value, outcome: &str) {
        let purpose = text(&detail["purpose"]);
        self.preparations.with_label_values(&[project, purpose, outcome]).inc();
    }
}

/// Written by this program, so there is one.
fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
