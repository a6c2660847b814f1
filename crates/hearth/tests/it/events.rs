//! `hearth events` and `hearth pool watch`: what is asked, what is printed, and how a connection that was cut off continues.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::fake::{Fake, Reply};
use crate::support::{hearth_at, project_page, run};

const ID: &str = "prj_01a2293c8678769eaa8a75680619a68f";

fn event(id: u64, kind: &str) -> String {
    format!(
        r#"{{"id":{id},"at":"2026-11-29T21:36:06.000Z","projectId":"{ID}","instanceId":"wpi_1","kind":"{kind}","reason":"a \u001b[31mreason","detail":{{"purpose":"pool","recipe":"r"}}}}"#
    )
}

fn position(after: u64) -> String {
    format!(r#"{{"after":{after}}}"#)
}

#[test]
fn newest_events_are_lines_for_people_and_json_lines_for_programs() {
    let route = |_: &crate::fake::Request| {
        let (begin, first, end) = (position(6), event(7, "instance.ready"), position(8));
        let unknown = r#"{"id":8,"kind":"instance.dreaming"}"#;
        Reply::events(&[
            ("begin", &begin),
            ("instance.ready", &first),
            ("instance.dreaming", unknown),
            ("end", &end),
        ])
    };
    let fake = Fake::start(route);
    let ran = run(hearth_at(&fake.url, &["events", ID, "--last", "5"]));
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.stdout
            .ends_with("instance.ready          wpi_1  purpose=pool  (a reason)\n"),
        "{ran:?}"
    );
    let requests = fake.requests();
    let asked = &requests.last().unwrap().line;
    assert_eq!(asked, &format!("GET /api/v1/events?projectId={ID}&last=5&follow=false"));
    let ran = run(hearth_at(&fake.url, &["events", "--after", "6", "--json"]));
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!((ran.code, lines.len()), (0, 1), "{ran:?}");
    let shown: serde_json::Value = serde_json::from_str(lines[0]).unwrap();
    assert_eq!((&shown["id"], &shown["kind"]), (&7.into(), &"instance.ready".into()));
    let requests = fake.requests();
    assert_eq!(requests.last().unwrap().line, "GET /api/v1/events?after=6&follow=false");
}

#[test]
fn followed_events_continue_after_the_last_one_when_the_connection_is_lost() {
    let asked = AtomicUsize::new(0);
    let fake = Fake::start(move |request| {
        if !request.line.contains("/events") {
            return Reply::ok(&project_page());
        }
        let (begin, one, two, end) = (
            position(6),
            event(7, "instance.claimed"),
            event(8, "claim.ended"),
            position(8),
        );
        match asked.fetch_add(1, Ordering::SeqCst) {
            // It stops without its end: cut off.
            0 => Reply::events(&[("begin", &begin), ("instance.claimed", &one)]),
            _ => Reply::events(&[("claim.ended", &two), ("end", &end)]),
        }
    });
    let ran = run(hearth_at(&fake.url, &["events", "--follow"]));
    assert_eq!(ran.code, 0, "{ran:?}");
    let kinds: Vec<&str> = ran
        .stdout
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2))
        .collect();
    assert_eq!(kinds, ["instance.claimed", "claim.ended"], "{ran:?}");
    assert!(ran.stderr.contains("trying again every second"), "{ran:?}");
    let lines: Vec<String> = fake.requests().into_iter().map(|request| request.line).collect();
    assert_eq!(
        lines,
        [
            "GET /api/v1/events?last=50&follow=true",
            "GET /api/v1/events?after=7&follow=true"
        ]
    );
}
