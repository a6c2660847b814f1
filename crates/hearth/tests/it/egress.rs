//! `hearth egress`: what is sent, and what is shown.

use serde_json::json;

use crate::fake::{Fake, Reply};
use crate::support::{hearth_at, project_page, run};

const POLICY: &str = r#"{"mode":"allow","hosts":["github.com"],"cidrs":["203.0.113.0/24"],"updatedAt":"2025-01-01T00:00:00.000Z",
    "pending":[{"id":"wpi_1","reason":"it is about to be"}]}"#;
const REFUSED: &str = r#"{"policy":{"mode":"allow","hosts":[],"cidrs":[]},"upToDate":true,"more":true,"refused":[
    {"target":"8.8.8.8:53","protocol":"udp","count":3,"firstAt":"2025-01-01T00:00:00.000Z","lastAt":"2025-01-01T00:00:00.000Z"}]}"#;

fn server() -> Fake {
    Fake::start(|request| match request.line.as_str() {
        line if line.contains("/instances/wpi_1/egress") => Reply::ok(REFUSED),
        line if line.contains("/egress") => Reply::ok(POLICY),
        _ => Reply::ok(&project_page()),
    })
}

fn sent(fake: &Fake) -> serde_json::Value {
    serde_json::from_str(&fake.requests_of("PUT")[0].body).unwrap()
}

#[test]
fn lists_are_added_to_and_removed_from_and_shown() {
    for (args, body) in [
        (
            &["egress", "allow", "web", "*.NPMJS.org", "github.com", "10.0.0.0/8"][..],
            json!({ "mode": "allow", "hosts": ["github.com", "*.npmjs.org"], "cidrs": ["203.0.113.0/24", "10.0.0.0/8"] }),
        ),
        (
            &["egress", "open", "web"],
            json!({ "mode": "open", "hosts": ["github.com"], "cidrs": ["203.0.113.0/24"] }),
        ),
        (
            &["egress", "remove", "web", "github.com"],
            json!({ "mode": "allow", "hosts": [], "cidrs": ["203.0.113.0/24"] }),
        ),
    ] {
        let fake = server();
        let ran = run(hearth_at(&fake.url, args));
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(sent(&fake), body);
    }
    let fake = server();
    let shown = run(hearth_at(&fake.url, &["egress", "show", "web"]));
    assert_eq!(
        shown.stdout,
        "allow: claimed VMs reach only\n  github.com\n  203.0.113.0/24\nnot in force yet in wpi_1: it is about to be\n",
        "{shown:?}"
    );
    let refused = run(hearth_at(&fake.url, &["egress", "refused", "wpi_1"]));
    assert!(
        refused.stdout.contains("8.8.8.8:53") && refused.stdout.contains("more places"),
        "{refused:?}"
    );
}

#[test]
fn what_is_not_on_the_list_or_no_entry_at_all_is_said_and_nothing_is_sent() {
    for (args, code, says) in [
        (
            &["egress", "remove", "web", "gitlab.com"][..],
            1,
            "gitlab.com is not in the list",
        ),
        (
            &["egress", "allow", "web", "https://github.com/acme"],
            2,
            "without `https://`",
        ),
        (
            &["egress", "allow", "web", "10.0.0.0/40"],
            2,
            "an IPv4 address or network",
        ),
    ] {
        let fake = server();
        let ran = run(hearth_at(&fake.url, args));
        assert_eq!(ran.code, code, "{ran:?}");
        assert!(ran.stderr.contains(says), "{ran:?}");
        assert!(fake.requests_of("PUT").is_empty());
    }
}
