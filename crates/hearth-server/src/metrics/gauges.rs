//! What is read when it is asked for.

use hearth_core::purpose::Purpose;
use hearth_core::state::InstanceState;
use jiff::{SignedDuration, Timestamp};
use nix::sys::statvfs::statvfs;
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, IntCounter, Opts, Registry};

use super::{LEASE_ENDS_SOON, Metrics, MetricsError};
use crate::store::InstanceFigure;

/// Bytes in a MiB.
const MIB: u64 = 1 << 20;
/// Seconds in a minute.
const MINUTE: u64 = 60;
/// States in which a pool's instances are counted; those in none are 0, so that there is something to compare with.
const STATES: [InstanceState; 6] = [
    InstanceState::Provisioning,
    InstanceState::Ready,
    InstanceState::Claimed,
    InstanceState::Failed,
    InstanceState::Retiring,
    InstanceState::Deleting,
];

/// The gauges of one reading.
#[derive(Default)]
struct Reading {
    registry: Registry,
}

impl Reading {
    fn gauge(&self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec, prometheus::Error> {
        let made = GaugeVec::new(Opts::new(name, help), labels)?;
        self.registry.register(Box::new(made.clone()))?;
        Ok(made)
    }

    fn one(&self, name: &str, help: &str, value: f64) -> Result<(), prometheus::Error> {
        let gauge = self.gauge(name, help, &[])?;
        gauge.with_label_values::<&str>(&[]).set(value);
        Ok(())
    }

    fn counter(&self, name: &str, help: &str, value: u64) -> Result<(), prometheus::Error> {
        let counter = IntCounter::new(name, help)?;
        self.registry.register(Box::new(counter.clone()))?;
        counter.inc_by(value);
        Ok(())
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "metrics are floating point, and exact up to 2^53"
)]
fn float(number: u64) -> f64 {
    number as f64
}

/// Seconds since then.
fn age(at: Timestamp, now: Timestamp) -> f64 {
    now.duration_since(at).as_secs_f64().max(0.0)
}

impl Metrics {
    pub(super) async fn gauges(&self, now: Timestamp) -> Result<Vec<MetricFamily>, MetricsError> {
        let reading = Reading::default();
        self.pools(&reading, now).await?;
        self.host(&reading)?;
        reading
            .gauge("hearth_build_info", "The version of the server.", &["version"])?
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1.0);
        let soon = now + SignedDuration::try_from(LEASE_ENDS_SOON).unwrap_or_default();
        reading.one(
            "hearth_leases_expiring",
            "Claims whose lease ends within 10 minutes.",
            float(self.store.leases_ending(soon).await?),
        )?;
        Ok(reading.registry.gather())
    }

    /// What every pool has and is to have.
    async fn pools(&self, reading: &Reading, now: Timestamp) -> Result<(), MetricsError> {
        let info = reading.gauge(
            "hearth_project_info",
            "The names of a project: 1 for each.",
            &["project", "tenant", "name"],
        )?;
        for project in self.store.project_figures().await? {
            let label = self.projects.label(&project.id);
            self.counted.begin(label);
            if label == project.id.as_str() {
                info.with_label_values(&[label, &project.tenant, &project.name])
                    .set(1.0);
            }
        }
        let target = reading.gauge(
            "hearth_pool_target",
            "VMs that an enabled pool is to have ready now, by its target size or its schedule.",
            &["project"],
        )?;
        let max_age = reading.gauge(
            "hearth_pool_max_age_seconds",
            "Age at which an enabled pool's ready VMs are replaced.",
            &["project"],
        )?;
        let template = reading.gauge(
            "hearth_template_age_seconds",
            "Age of the newest template of an enabled pool; nothing where it has none.",
            &["project"],
        )?;
        let instances = reading.gauge(
            "hearth_pool_instances",
            "Instances of a pool by state: what claims can get, and what they got.",
            &["project", "state"],
        )?;
        for pool in self.store.pool_figures().await? {
            let label = self.projects.label(&pool.project);
            let ready = self.schedules.target_size(&pool.project, &pool.size, now);
            target.with_label_values(&[label]).add(float(ready));
            max_age
                .with_label_values(&[label])
                .set(float(pool.max_age_minutes * MINUTE));
            if let Some(at) = pool.template {
                template.with_label_values(&[label]).set(age(at, now));
            }
            for state in STATES {
                instances.with_label_values(&[label, state.as_str()]).add(0.0);
            }
        }
        let oldest = reading.gauge(
            "hearth_pool_oldest_ready_seconds",
            "Age of the ready VM of a pool that has been ready longest.",
            &["project"],
        )?;
        let others = reading.gauge(
            "hearth_other_instances",
            "Instances that no pool counts: tests and renewals of templates.",
            &["purpose", "state"],
        )?;
        for figure in self.store.instance_figures().await? {
            let state = figure.state.as_str();
            if !figure.purpose.serves_claims() {
                let purpose = figure.purpose.as_str();
                others.with_label_values(&[purpose, state]).add(float(figure.count));
                continue;
            }
            let label = self.projects.label(&figure.project);
            instances
                .with_label_values(&[label, state_label(&figure)])
                .add(float(figure.count));
            if figure.state == InstanceState::Ready && figure.purpose == Purpose::Pool {
                let gauge = oldest.with_label_values(&[label]);
                gauge.set(gauge.get().max(age(figure.oldest, now)));
            }
        }
        let lag = reading.gauge(
            "hearth_checkout_lag_commits",
            "Commits of their branches that the ready VM of a pool lacks that lacks most; nothing where that is not known.",
            &["project"],
        )?;
        for (project, commits) in self.status.checkout_lags().await? {
            let gauge = lag.with_label_values(&[self.projects.label(&project)]);
            gauge.set(gauge.get().max(float(commits)));
        }
        let breaker = reading.gauge(
            "hearth_breaker_open",
            "1 for a pool that is not filled because its set-up failed again and again.",
            &["project"],
        )?;
        for (project, is_open) in self.status.breakers() {
            let gauge = breaker.with_label_values(&[self.projects.label(&project)]);
            gauge.set(gauge.get().max(if is_open { 1.0 } else { 0.0 }));
        }
        Ok(())
    }

    /// What the host has and how much of it is used.
    fn host(&self, reading: &Reading) -> Result<(), MetricsError> {
        let host = self.status.host_use();
        let (templates, templates_limit) = self.gc.disk();
        for (name, help, value) in [
            ("hearth_host_vms", "VMs that exist.", host.vms),
            ("hearth_host_vms_limit", "VMs that may exist.", host.max_vms),
            (
                "hearth_host_memory_used_bytes",
                "Memory that all VMs count with.",
                host.memory_mib * MIB,
            ),
            (
                "hearth_host_memory_limit_bytes",
                "Memory that all VMs together may count with.",
                host.max_memory_mib * MIB,
            ),
            (
                "hearth_template_disk_used_bytes",
                "What checkpoints take on the disk.",
                templates,
            ),
            (
                "hearth_template_disk_limit_bytes",
                "What checkpoints may take on the disk.",
                templates_limit,
            ),
        ] {
            reading.one(name, help, float(value))?;
        }
        // A folder that cannot be asked has no figures.
        if let Ok(disk) = statvfs(&*self.data_dir) {
            let block = disk.fragment_size();
            reading.one(
                "hearth_disk_size_bytes",
                "Size of the disk that the data folder is on.",
                float(disk.blocks() * block),
            )?;
            reading.one(
                "hearth_disk_free_bytes",
                "What is free on the disk that the data folder is on.",
                float(disk.blocks_available() * block),
            )?;
        }
        let passes = self.status.passes();
        reading.counter(
            "hearth_passes_total",
            "Passes of the loop that fills the pools.",
            passes.count,
        )?;
        reading.counter(
            "hearth_orphans_found_total",
            "VMs that were found without a row, and are removed.",
            passes.orphans,
        )?;
        if let Some(last) = passes.last {
            reading.one(
                "hearth_last_pass_timestamp_seconds",
                "When the loop that fills the pools last made a pass.",
                last.as_duration().as_secs_f64(),
            )?;
        }
        Ok(())
    }
}

/// A ready one that waits for its claim is not the pool's.
fn state_label(figure: &InstanceFigure) -> &'static str {
    match (figure.state, figure.purpose) {
        (InstanceState::Ready, Purpose::Claim) => "reserved",
        (state, _) => state.as_str(),
    }
}
