//! Each alert is raised by its own fault, and by no other one: the shipped rules over series that are written for that.

use serde_json::{Value, json};

use super::prometheus::{deployed, promtool};

/// When the alerts are looked at: each has had its time by then.
const AT: &str = "100m";

/// A series and its values, as promtool writes them.
type Series = (&'static str, &'static str);

/// A server and a pool with which everything is in order.
const HEALTHY: [Series; 21] = [
    ("up", "1x120"),
    ("hearth_last_pass_timestamp_seconds", "0+60x120"),
    ("hearth_pool_target{project=\"p\"}", "2x120"),
    ("hearth_pool_instances{project=\"p\",state=\"ready\"}", "2x120"),
    ("hearth_pool_instances{project=\"p\",state=\"claimed\"}", "0x120"),
    ("hearth_template_age_seconds{project=\"p\"}", "0+60x120"),
    ("hearth_breaker_open{project=\"p\"}", "0x120"),
    ("hearth_pool_max_age_seconds{project=\"p\"}", "3600x120"),
    ("hearth_pool_oldest_ready_seconds{project=\"p\"}", "3700x120"),
    (
        "hearth_claim_duration_seconds_bucket{project=\"p\",tier=\"ready\",le=\"0.5\"}",
        "0+10x120",
    ),
    (
        "hearth_claim_duration_seconds_bucket{project=\"p\",tier=\"ready\",le=\"5\"}",
        "0+10x120",
    ),
    (
        "hearth_claim_duration_seconds_bucket{project=\"p\",tier=\"ready\",le=\"+Inf\"}",
        "0+10x120",
    ),
    (
        "hearth_claim_duration_seconds_count{project=\"p\",tier=\"ready\"}",
        "0+10x120",
    ),
    (
        "hearth_claims_total{project=\"p\",tier=\"ready\",outcome=\"success\"}",
        "0+10x120",
    ),
    ("hearth_claim_misses_total{project=\"p\",cause=\"drained\"}", "0x120"),
    ("hearth_template_disk_used_bytes", "50x120"),
    ("hearth_template_disk_limit_bytes", "100x120"),
    ("hearth_disk_size_bytes", "100x120"),
    ("hearth_disk_free_bytes", "50x120"),
    ("hearth_orphans_found_total", "0x120"),
    ("hearth_claimed_vms_ended_total{project=\"p\"}", "0x120"),
];

/// A fault: the series that are other than in a healthy server (without values: they are not there), and the one alert that it raises.
const FAULTS: [(&str, &[Series]); 13] = [
    ("HearthDown", &[("up", "0x120")]),
    (
        "HearthPoolsNotFilled",
        &[("hearth_last_pass_timestamp_seconds", "0x120")],
    ),
    (
        "HearthPoolBelowTarget",
        &[("hearth_pool_instances{project=\"p\",state=\"ready\"}", "2x60 1x60")],
    ),
    (
        "HearthNoTemplate",
        &[("hearth_template_age_seconds{project=\"p\"}", "")],
    ),
    (
        "HearthBreakerOpen",
        &[("hearth_breaker_open{project=\"p\"}", "0x60 1x60")],
    ),
    (
        "HearthClaimsSlow",
        &[(
            "hearth_claim_duration_seconds_bucket{project=\"p\",tier=\"ready\",le=\"0.5\"}",
            "0+9x120",
        )],
    ),
    (
        "HearthClaimsCold",
        &[("hearth_claim_misses_total{project=\"p\",cause=\"drained\"}", "0+1x120")],
    ),
    (
        "HearthPoolNotFresh",
        &[("hearth_pool_oldest_ready_seconds{project=\"p\"}", "6000x120")],
    ),
    (
        "HearthTemplateDiskFull",
        &[("hearth_template_disk_used_bytes", "95x120")],
    ),
    ("HearthDiskFull", &[("hearth_disk_free_bytes", "5x120")]),
    ("HearthOrphanFound", &[("hearth_orphans_found_total", "0x95 1x30")]),
    (
        "HearthClaimedVmEnded",
        &[("hearth_claimed_vms_ended_total{project=\"p\"}", "0x95 1x30")],
    ),
    (
        "HearthCheckpointDamaged",
        &[("hearth_checkpoints_damaged_total{project=\"p\"}", "0x95 1x30")],
    ),
];

/// What does not raise any, though it may look like a fault.
const HARMLESS: [(&str, &[Series]); 4] = [
    // A claim took one, and it is made again.
    (
        "below the target for some minutes",
        &[("hearth_pool_instances{project=\"p\",state=\"ready\"}", "2x94 1x5 2x30")],
    ),
    (
        "a disabled pool without a template",
        &[
            ("hearth_pool_target{project=\"p\"}", ""),
            ("hearth_template_age_seconds{project=\"p\"}", ""),
        ],
    ),
    (
        "claims that leave the pool alone",
        &[("hearth_claim_misses_total{project=\"p\",cause=\"bypass\"}", "0+5x120")],
    ),
    ("an orphan of long ago", &[("hearth_orphans_found_total", "0x20 1x100")]),
];

/// The label that Prometheus gives to all that it scrapes.
fn scraped(series: &str) -> String {
    match series.split_once('{') {
        Some((name, labels)) => format!("{name}{{job=\"hearth\",instance=\"h\",{labels}"),
        None => format!("{series}{{job=\"hearth\",instance=\"h\"}}"),
    }
}

/// One of promtool's tests: these series raise this alert, or none, and no other.
fn test(name: &str, changed: &[Series], raised: Option<&str>) -> Value {
    let is_changed = |series: &str| changed.iter().any(|(changed, _)| *changed == series);
    let healthy = HEALTHY.iter().filter(|(series, _)| !is_changed(series));
    let all = healthy.chain(changed).filter(|(_, values)| !values.is_empty());
    let series: Vec<Value> = all
        .map(|(series, values)| json!({ "series": scraped(series), "values": values }))
        .collect();
    // Asked of Prometheus' own series of alerts, so that all of them count.
    let samples: Vec<Value> = raised
        .iter()
        .map(|alert| json!({ "labels": format!("{{alertname=\"{alert}\"}}"), "value": 1 }))
        .collect();
    json!({
        "name": name,
        "interval": "1m",
        "input_series": series,
        "promql_expr_test": [{
            "expr": "count by (alertname) (ALERTS{alertstate=\"firing\"})",
            "eval_time": AT,
            "exp_samples": samples,
        }],
    })
}

#[test]
#[ignore = "needs Prometheus (all: cargo xtask test; alone: cargo xtask test NAME)"]
fn each_alert_is_raised_by_its_fault_and_by_nothing_else() {
    let rules = deployed("prometheus/alerts.yml");
    let text = std::fs::read_to_string(&rules).unwrap();
    let shipped: Vec<&str> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    let tried: Vec<&str> = FAULTS.iter().map(|(alert, _)| *alert).collect();
    assert_eq!(shipped, tried, "each alert has its fault");
    let (content, said) = promtool(&["check", "rules", rules.to_str().unwrap()], "");
    assert!(content, "{said}");
    let mut tests = vec![test("healthy", &[], None)];
    tests.extend(FAULTS.iter().map(|(alert, series)| test(alert, series, Some(alert))));
    tests.extend(HARMLESS.iter().map(|(name, series)| test(name, series, None)));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tests.yml");
    let rules = rules.canonicalize().unwrap();
    let body = json!({ "rule_files": [rules], "evaluation_interval": "1m", "tests": tests });
    std::fs::write(&file, body.to_string()).unwrap();
    let (content, said) = promtool(&["test", "rules", file.to_str().unwrap()], "");
    assert!(content, "{said}");
    // The test itself can fail: a fault that is said to raise nothing is found out.
    let wrong =
        json!({ "rule_files": [rules], "evaluation_interval": "1m", "tests": [test("wrong", FAULTS[0].1, None)] });
    std::fs::write(&file, wrong.to_string()).unwrap();
    assert!(!promtool(&["test", "rules", file.to_str().unwrap()], "").0);
}
