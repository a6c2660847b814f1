//! `hearth webhook`: what is asked and what is printed.

use crate::fake::{Fake, Reply};
use crate::support::{hearth_at, run};

const ID: &str = "whk_01a2293c8678769eaa8a75680619a68f";

#[test]
fn webhook_is_made_with_its_own_url_and_its_secret_is_printed_once() {
    let fake = Fake::start(|request| match request.line.as_str() {
        line if line.starts_with("POST") => Reply::ok(&format!(r#"{{"id":"{ID}","secret":"whsec_abc"}}"#)),
        _ => Reply::ok(&format!(
            r#"{{"items":[{{"id":"{ID}","url":"https://example.org/hook","projectId":null,"kinds":["claim.ended"],
                "createdAt":"2026-11-29T21:36:06.000Z","pending":1,"failed":2}}]}}"#
        )),
    });
    let create = ["webhook", "create", "https://example.org/hook", "--kind", "claim.ended"];
    let ran = run(hearth_at(&fake.url, &create));
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.stdout.contains("whsec_abc") && !ran.stderr.contains("whsec_abc"),
        "{ran:?}"
    );
    let asked = fake.requests().pop().unwrap();
    assert_eq!(asked.line, "POST /api/v1/webhooks");
    let body: serde_json::Value = serde_json::from_str(&asked.body).unwrap();
    assert_eq!(
        body,
        serde_json::json!({ "url": "https://example.org/hook", "kinds": ["claim.ended"] })
    );
    let ran = run(hearth_at(&fake.url, &["webhook", "list"]));
    assert!(ran.stdout.contains(ID) && ran.stdout.contains("claim.ended"), "{ran:?}");
    let ran = run(hearth_at(
        &fake.url,
        &["webhook", "create", "https://x", "--kind", "claim.dreamt"],
    ));
    assert_eq!(ran.code, 2, "{ran:?}");
}
