//! Git credentials from the command line: where secrets may come from, and that they are never shown.

use crate::fake::{Fake, Reply};
use crate::support::{hearth_at, project_page, run, run_at_terminal_after, run_with_stdin};

const ITEM: &str = r#"{"items":[{"host":"github.com","kind":"token","username":null,"allowHttp":false,"fingerprint":null,
    "updatedAt":"2025-01-01T00:00:00.000Z","lastUpdatedByUserId":"ada"}]}"#;

fn server() -> Fake {
    Fake::start(|request| {
        if request.line.starts_with("DELETE") {
            return Reply::ok(r#"{"deleted":true,"host":"github.com"}"#);
        }
        if request.line.contains("/credentials") {
            return Reply::ok(ITEM);
        }
        Reply::ok(&project_page())
    })
}

fn sent(fake: &Fake) -> serde_json::Value {
    let body: serde_json::Value = serde_json::from_str(&fake.requests_of("PUT")[0].body).unwrap();
    body["credentials"][0].clone()
}

#[test]
fn token_comes_from_standard_input_a_file_or_a_prompt_and_is_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "ghp_geheim\n").unwrap();
    let set = ["credential", "set", "web", "GitHub.com"];

    let fake = server();
    let ran = run_with_stdin(hearth_at(&fake.url, &set), b"ghp_geheim\n");
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (0, "set the token for github.com\n"),
        "{}",
        ran.stderr
    );
    let body = sent(&fake);
    assert_eq!(
        body,
        serde_json::json!({ "host": "github.com", "kind": "token", "secret": "ghp_geheim", "allowHttp": false })
    );

    let fake = server();
    let from_file = [&set[..], &["--username", "bot", "--from-file", file.to_str().unwrap()]].concat();
    assert_eq!(run(hearth_at(&fake.url, &from_file)).code, 0);
    assert_eq!(
        (&sent(&fake)["secret"], &sent(&fake)["username"]),
        (&"ghp_geheim".into(), &"bot".into())
    );

    let fake = server();
    let (code, shown) = run_at_terminal_after(hearth_at(&fake.url, &set), "then Enter:", b"ghp_geheim\n");
    assert_eq!(code, Some(0), "{shown}");
    assert!(!shown.contains("geheim"), "{shown}");
    assert_eq!(sent(&fake)["secret"], "ghp_geheim");
}

#[test]
fn key_is_known_by_what_it_holds() {
    let fake = server();
    let key = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Blbg\n-----END OPENSSH PRIVATE KEY-----";
    let command = hearth_at(&fake.url, &["credential", "set", "web", "git.example:2222"]);
    let ran = run_with_stdin(command, format!("{key}\n").as_bytes());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let body = sent(&fake);
    assert_eq!(
        (&body["kind"], &body["host"]),
        (&"key".into(), &"git.example:2222".into())
    );
    assert_eq!(body["secret"], key);
}

#[test]
fn list_and_unset_name_servers_and_an_address_is_refused_before_anything_is_sent() {
    let fake = server();
    let list = run(hearth_at(&fake.url, &["credential", "list", "web"]));
    assert!(
        list.stdout.contains("github.com") && list.stdout.contains("ada"),
        "{}",
        list.stdout
    );
    let unset = run(hearth_at(&fake.url, &["credential", "unset", "web", "github.com"]));
    assert_eq!(
        unset.stdout, "removed the credentials for github.com\n",
        "{}",
        unset.stderr
    );
    let path = "DELETE /api/v1/projects/prj_1/credentials/github.com";
    assert_eq!(fake.requests_of(path).len(), 1);

    let fake = server();
    let command = hearth_at(&fake.url, &["credential", "set", "web", "https://github.com/acme"]);
    let ran = run_with_stdin(command, b"x");
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("without `https://`"), "{}", ran.stderr);
    assert!(fake.requests().is_empty());
}
