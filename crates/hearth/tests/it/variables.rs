//! Values of variables: where they may come from, and that they are never shown.

use crate::fake::{Fake, Reply};
use crate::support::{hearth_at, project_page, run, run_with_stdin};

fn server() -> Fake {
    Fake::start(|request| {
        if request.line.starts_with("PUT") {
            return Reply::ok(
                r#"{"items":[{"name":"KEY","configured":true,"updatedAt":"2025-01-01T00:00:00.000Z","lastUpdatedByUserId":null}]}"#,
            );
        }
        if request.line.starts_with("DELETE") {
            return Reply::ok(r#"{"deleted":true,"name":"KEY"}"#);
        }
        if request.line.contains("/environment-variables/") {
            return Reply::ok(r#"{"items":[]}"#);
        }
        Reply::ok(&project_page())
    })
}

fn value_sent(fake: &Fake) -> String {
    let body: serde_json::Value = serde_json::from_str(&fake.requests_of("PUT")[0].body).unwrap();
    assert_eq!(body["variables"][0]["name"], "KEY");
    body["variables"][0]["value"].as_str().unwrap().to_owned()
}

#[test]
fn a_value_from_standard_input_loses_its_line_end_and_nothing_else() {
    let fake = server();
    let ran = run_with_stdin(
        hearth_at(&fake.url, &["env", "set", "web", "KEY"]),
        b" two\nlines '\"$# \n",
    );
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(value_sent(&fake), " two\nlines '\"$# ");
    assert!(!ran.stdout.contains("two") && !ran.stderr.contains("two"));
}

#[test]
fn a_value_from_a_file_can_be_kept_exactly() {
    let fake = server();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    std::fs::write(&file, "pem\n").unwrap();
    let file = file.to_str().unwrap();
    let ran = run(hearth_at(
        &fake.url,
        &["env", "set", "web", "KEY", "--from-file", file, "--exact"],
    ));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(value_sent(&fake), "pem\n");
}

#[test]
fn bytes_that_are_no_text_are_refused_before_anything_is_sent() {
    let fake = server();
    let ran = run_with_stdin(hearth_at(&fake.url, &["env", "set", "web", "KEY"]), &[0xff, 0xfe]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("UTF-8"), "{}", ran.stderr);
    assert!(fake.requests().is_empty());
}

#[test]
fn personal_variables_are_apart_from_those_that_all_share() {
    for (option, place) in [(&["--personal"][..], "personal"), (&[], "shared")] {
        let fake = server();
        let path = format!("/api/v1/projects/prj_1/environment-variables/{place}");
        let with = |args: &[&str]| run(hearth_at(&fake.url, &[args, option].concat()));
        assert_eq!(with(&["env", "set", "web", "KEY=v"]).code, 0);
        assert_eq!(fake.requests_of(&format!("PUT {path}")).len(), 1, "{place}");
        let list = with(&["env", "list", "web"]);
        assert!(list.stdout.contains("hearth env set PROJECT NAME"), "{}", list.stdout);
        assert_eq!(
            list.stdout.contains("--personal"),
            place == "personal",
            "{}",
            list.stdout
        );
        assert_eq!(fake.requests_of(&format!("GET {path}")).len(), 1, "{place}");
        assert_eq!(with(&["env", "unset", "web", "KEY"]).stdout, "removed KEY\n");
        assert_eq!(fake.requests_of(&format!("DELETE {path}/KEY")).len(), 1, "{place}");
    }
}

#[test]
fn value_that_is_short_or_a_common_word_is_warned_of_and_not_said() {
    let fake = server();
    let ran = run(hearth_at(
        &fake.url,
        &[
            "env",
            "set",
            "web",
            "LEVEL=debug",
            "MODE=development",
            "KEY=hunter2-and-more",
            "DEPTH=1",
        ],
    ));
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (0, "set LEVEL, MODE, KEY, DEPTH\n"),
        "{}",
        ran.stderr
    );
    assert!(
        ran.stderr.starts_with(
            "warning: LEVEL, MODE: the values are short or common words, and every place that has one of them is redacted"
        ),
        "{}",
        ran.stderr
    );
    assert!(
        !ran.stderr.contains("debug") && !ran.stderr.contains("development"),
        "{}",
        ran.stderr
    );
    let ran = run(hearth_at(&fake.url, &["env", "set", "web", "KEY=hunter2-and-more"]));
    assert_eq!(ran.stderr, "");
    // Programs get JSON and nothing else.
    let ran = run(hearth_at(&fake.url, &["--json", "env", "set", "web", "LEVEL=debug"]));
    assert_eq!(ran.stderr, "");
    let ran = run(hearth_at(&fake.url, &["env", "list", "web"]));
    assert_eq!(
        ran.stderr,
        "your personal variables are apart: hearth env list web --personal\n"
    );
}

#[test]
fn an_empty_value_is_set_only_when_that_is_said() {
    let fake = server();
    for (args, code) in [(&["TOKEN"][..], 2), (&["TOKEN", "--exact"], 0), (&["TOKEN="], 0)] {
        let ran = run(hearth_at(&fake.url, &[&["env", "set", "web"], args].concat()));
        assert_eq!(ran.code, code, "{args:?}: {}", ran.stderr);
    }
}
