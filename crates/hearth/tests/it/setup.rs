//! `hearth setup`: the setup object in and out, and files that hold none.

use crate::fake::{Fake, Reply};
use crate::support::{hearth_at, project_page, run, run_with_stdin};

const OBJECT: &str = r#"{"vmSize":"large","repositories":[{"repository":"acme/web","branch":"main",
    "scripts":{"initialize":"npm ci\nnpm run build","updateAfterCheckout":null,"startup":"npm start &"},
    "timeouts":{"initialize":900},"commands":[{"name":"test","command":"npm test"}]}]}"#;

fn view() -> String {
    format!(
        r#"{{"source":"setup","legacyHooks":{{"status":"ignored","repositories":["acme/web"],"checkComplete":false}},
        "setup":{OBJECT}}}"#
    )
}

fn server() -> Fake {
    Fake::start(|request| {
        if request.line.contains("/setup") {
            return Reply::ok(&view());
        }
        Reply::ok(&project_page())
    })
}

fn sent(fake: &Fake) -> (String, serde_json::Value) {
    let request = fake.requests_of("PATCH").remove(0);
    (request.line, serde_json::from_str(&request.body).unwrap())
}

#[test]
fn it_is_shown_for_people_and_for_programs() {
    let fake = server();
    let ran = run(hearth_at(&fake.url, &["setup", "show", "web"]));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(
        ran.stdout,
        "set up by:  this setup object
old hooks:  in acme/web, but the setup object replaces them (not every repository could be read)
VM size:    large
tool hooks: -

acme/web@main
  initialize:          npm ci
                       npm run build
                       (at most 900 s)
  updateAfterCheckout: -
  startup:             npm start &
                       (at most 1800 s)
  commands:            test: npm test
"
    );
    let ran = run(hearth_at(&fake.url, &["setup", "show", "web", "--json"]));
    let printed: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(printed, serde_json::from_str::<serde_json::Value>(&view()).unwrap());
    assert_eq!(fake.requests_of("GET /api/v1/projects/prj_1/setup").len(), 2);
}

#[test]
fn a_file_is_saved_as_it_is() {
    let fake = server();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("setup.json");
    std::fs::write(&file, OBJECT).unwrap();
    let ran = run(hearth_at(&fake.url, &["setup", "save", "web", file.to_str().unwrap()]));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.stderr, "");
    let (line, body) = sent(&fake);
    assert_eq!(line, "PATCH /api/v1/projects/prj_1/setup");
    assert_eq!(body, serde_json::from_str::<serde_json::Value>(OBJECT).unwrap());
}

#[test]
fn branch_that_the_file_leaves_out_is_kept_and_that_is_said() {
    let fake = Fake::start(|request| {
        if request.line.contains("/setup") {
            return Reply::ok(&view());
        }
        if request.line.starts_with("GET /api/v1/projects/prj_1 ") || request.line == "GET /api/v1/projects/prj_1" {
            return Reply::ok(&project("nosuch"));
        }
        Reply::ok(&project_page())
    });
    let text = OBJECT.replace(r#""branch":"main","#, "");
    let ran = run_with_stdin(hearth_at(&fake.url, &["setup", "save", "web"]), text.as_bytes());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let (_, body) = sent(&fake);
    assert_eq!(body["repositories"][0]["branch"], "nosuch");
    assert!(
        ran.stderr
            .starts_with("note: branch kept, since none is given: acme/web@nosuch (`branch` in the file changes it")
            && ran.stderr.contains("`hearth project edit web`"),
        "{}",
        ran.stderr
    );
    // The project has no such repository, so nothing of it is kept.
    let text = OBJECT
        .replace(r#""branch":"main","#, "")
        .replace("acme/web", "acme/other");
    let ran = run_with_stdin(hearth_at(&fake.url, &["setup", "save", "web"]), text.as_bytes());
    assert!(!ran.stderr.contains("branch kept"), "{}", ran.stderr);
}

fn project(branch: &str) -> String {
    let page: serde_json::Value = serde_json::from_str(&project_page()).unwrap();
    let mut project = page["items"][0].clone();
    project["repos"] = serde_json::json!([{ "repoFullName": "acme/web", "branch": branch }]);
    project.to_string()
}

#[test]
fn what_show_prints_can_be_saved_again() {
    let fake = server();
    let ran = run_with_stdin(
        hearth_at(&fake.url, &["setup", "save", "web", "--replace-legacy-hooks"]),
        view().as_bytes(),
    );
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let (line, body) = sent(&fake);
    assert_eq!(line, "PATCH /api/v1/projects/prj_1/setup?replaceLegacyHooks=true");
    assert_eq!(body, serde_json::from_str::<serde_json::Value>(OBJECT).unwrap());
}

#[test]
fn a_file_that_holds_none_is_refused_with_its_place_before_anything_is_sent() {
    let fake = server();
    for (text, place) in [
        ("{\"repositories\": [\n  {]}", "line 2, column 4"),
        (
            "{\"vmSize\": \"tiny\",\n\"repositories\": []}",
            "line 1, column 2: vmSize: must be one of",
        ),
        ("{\n\"repositories\": {}\n}", "line 2, column 1: repositories: must be"),
        (
            "{\"setup\": {\n\"repositories\": 5}}",
            "line 2, column 1: repositories: must be",
        ),
        (
            "{\"repositories\": [{\"repository\": \"a/b\",\n\"branch\": \"main\", \"scripts\": []}]}",
            "line 2, column 19: repositories[0].scripts: must be",
        ),
        (
            "{\"repositories\":\n [{\"branch\": \"main\"}]}",
            "line 2, column 3: repositories[0].repository: is missing",
        ),
        ("[[]]", "line 1, column 1: must be"),
        ("{}", "line 1, column 1: repositories: is missing"),
        ("", "standard input is empty"),
    ] {
        let ran = run_with_stdin(hearth_at(&fake.url, &["setup", "save", "web", "-"]), text.as_bytes());
        assert_eq!(ran.code, 2, "{text}: {}", ran.stderr);
        assert!(
            ran.stderr.starts_with("error: standard input ") && ran.stderr.contains(place),
            "{text}: {}",
            ran.stderr
        );
    }
    let ran = run(hearth_at(
        &fake.url,
        &["setup", "save", "web", "/nonexistent/setup.json"],
    ));
    assert_eq!(ran.code, 2);
    assert!(
        ran.stderr.contains("/nonexistent/setup.json cannot be read"),
        "{}",
        ran.stderr
    );
    assert!(fake.requests().is_empty());
}

#[test]
fn unknown_key_is_a_fault_at_every_depth_and_the_known_ones_are_named() {
    let fake = server();
    let text = OBJECT.replace(r#""timeouts""#, r#""timeout""#);
    let ran = run_with_stdin(hearth_at(&fake.url, &["setup", "save", "web"]), text.as_bytes());
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(
        ran.stderr
            .contains("line 3, column 5: repositories[0].timeout: is not known here; is `timeouts` meant?"),
        "{}",
        ran.stderr
    );
    assert!(fake.requests_of("PATCH").is_empty());
    let text = OBJECT.replace(r#""timeouts""#, r#""x-origin""#);
    let ran = run_with_stdin(hearth_at(&fake.url, &["setup", "save", "web"]), text.as_bytes());
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(
        ran.stderr.contains(
            "line 3, column 5: repositories[0].x-origin: is not known here; there is branch, commands, repository, scripts, timeouts"
        ),
        "{}",
        ran.stderr
    );
    // All at once, a beginning of a key too, and what stands beside the setup object.
    let text = r#"{"scripts": {}, "source": "setup", "setup": {
 "hooks": {"contxt": {"maxOutput": 5}}, "repositories": [{"repository": "acme/web", "scripts": {"init": "npm ci"},
  "commands": [{"name": "a", "command": "b", "cwd": "/"}]}]}}"#;
    let ran = run_with_stdin(hearth_at(&fake.url, &["setup", "save", "web"]), text.as_bytes());
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    for part in [
        "standard input holds no setup object: 4 faults",
        "line 1, column 2: scripts beside `setup`: is not known here; does it belong into `setup`?",
        "line 2, column 12: hooks.contxt: is not known here; is `context` meant?",
        "repositories[0].scripts.init: is not known here; is `initialize` meant?",
        "repositories[0].commands[0].cwd: is not known here; there is command, name",
    ] {
        assert!(ran.stderr.contains(part), "{part}:\n{}", ran.stderr);
    }
    assert!(fake.requests_of("PATCH").is_empty());
}

#[test]
fn unknown_key_in_a_file_of_commands_is_a_fault() {
    let fake = server();
    let text = r#"[{"name": "db", "command": "./db", "backgruond": true}, {"name": 5, "command": "x"}]"#;
    let save = &["pool", "set", "web", "--commands-file", "-"];
    let ran = run_with_stdin(hearth_at(&fake.url, save), text.as_bytes());
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    for part in [
        "standard input holds no list of set-up commands: 2 faults",
        "line 1, column 36: [0].backgruond: is not known here; is `background` meant?",
        "[1].name: must be of the type string",
        "hint: write it like [",
    ] {
        assert!(ran.stderr.contains(part), "{part}:\n{}", ran.stderr);
    }
    assert!(fake.requests_of("PATCH").is_empty());
}

#[test]
fn when_hooks_would_be_replaced_the_hint_says_how_to_agree() {
    let fake = Fake::start(|request| {
        if request.line.starts_with("PATCH") {
            return Reply::json(
                422,
                r#"{"error":{"code":"validation_error","message":"the request is not as it must be","details":[
                    {"path":"replaceLegacyHooks","message":"must be true: saving replaces the active hooks"}]}}"#,
            );
        }
        Reply::ok(&project_page())
    });
    let ran = run_with_stdin(hearth_at(&fake.url, &["setup", "save", "web"]), OBJECT.as_bytes());
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains("must be true: saving replaces the active hooks")
            && ran
                .stderr
                .contains("hint: if they may be replaced, say --replace-legacy-hooks"),
        "{}",
        ran.stderr
    );
}
