//! The checks behind `hearth doctor`, on the host that runs the tests.

use std::net::TcpListener;

use hearth_drivers::host::{Finding, Status, check};
use hearth_image::Stores;

fn named<'a>(findings: &'a [Finding], name: &str) -> &'a Finding {
    findings.iter().find(|finding| finding.name == name).unwrap()
}

#[tokio::test]
async fn every_finding_says_what_is_and_what_to_do() {
    let data = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let missing = data.path().join("not/made/yet");
    let findings = check(
        &missing,
        &Stores::new(&missing, Vec::new()),
        Some(taken.local_addr().unwrap()),
    )
    .await;
    for finding in &findings {
        println!("{finding:?}");
        assert!(!finding.summary.is_empty());
        assert_eq!(finding.fix.is_some(), finding.status != Status::Ok, "{finding:?}");
    }
    assert_eq!(named(&findings, "port").status, Status::Warn);
    assert_eq!(named(&findings, "image").status, Status::Fail);
    assert_eq!(
        named(&findings, "namespaces").status,
        Status::Ok,
        "the tests of the driver need them too"
    );
    assert!(named(&findings, "load").summary.starts_with("load average "));
    assert!(named(&findings, "git").summary.starts_with("git version"));
    assert!(!missing.exists(), "looking changes nothing");
    drop(taken);
    assert_eq!(std::fs::read_dir(data.path()).unwrap().count(), 0);
}
