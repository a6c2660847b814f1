//! `hearth pool advise`: the table, and the command that follows the advice.

use crate::fake::{Fake, Reply};
use crate::support::{hearth_at, run};

const ID: &str = "prj_01a2293c8678769eaa8a75680619a68f";

#[test]
fn advice_is_a_table_of_targets_and_says_how_to_follow_it() {
    let fake = Fake::start(|_| {
        Reply::ok(
            r#"{"since":"2026-11-17T09:34:55.012Z","until":"2026-11-24T09:34:55.012Z","claims":412,"refillMs":1890,"atOnce":3,
                "suggested":{"target":4,"hitRate":0.961,"p95WaitMs":0,"vmHours":655.2},
                "present":{"target":2,"hitRate":0.874,"p95WaitMs":1890,"vmHours":318.4},"asked":null}"#,
        )
    });
    let ran = run(hearth_at(&fake.url, &["pool", "advise", ID, "--days", "7"]));
    assert_eq!(ran.code, 0, "{ran:?}");
    for text in ["412 claims replayed", "96.1 %", "87.4 %", "655.2", "3 at a time"] {
        assert!(ran.stdout.contains(text), "{text}: {}", ran.stdout);
    }
    assert!(
        ran.stderr.contains(&format!("pool set {ID} --target 4")),
        "{}",
        ran.stderr
    );
    let asked = fake.requests().pop().unwrap().line;
    assert_eq!(asked, format!("GET /api/v1/projects/{ID}/warm-pool/advice?days=7"));
}
