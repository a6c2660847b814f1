//! What a person may type for a project or an instance, tokens by what they are for, and the commands that hints show.

use crate::fake::{Fake, Reply, Request};
use crate::support::{PROJECT, hearth, hearth_at, local_server, private, run};

const ONE: &str = "wpi_01a209bacc5b714f95acb5a1b59650f7";
const TWO: &str = "wpi_01a209bacc5b714f95acb5a1b5965aaa";

fn found(id: &str, status: &str, task: &str) -> String {
    format!(
        r#"{{"id":"{id}","projectId":"prj_1","projectName":"my shop","status":{status},"taskId":"{task}",
        "claimedAt":"2025-01-01T00:00:00.000Z"}}"#
    )
}

fn items(items: &[String]) -> Reply {
    Reply::ok(&format!(r#"{{"items":[{}]}}"#, items.join(",")))
}

fn refused(scope: &str) -> Reply {
    Reply::json(
        403,
        &format!(r#"{{"error":{{"code":"forbidden","message":"this token lacks the scope `{scope}`"}}}}"#),
    )
}

/// A server as it answers a token that may only claim.
fn for_a_claim_token(request: &Request) -> Reply {
    let line = request.line.as_str();
    match line {
        "GET /api/v1/find/projects?text=my+shop" => items(&[r#"{"id":"prj_1","name":"my shop"}"#.to_owned()]),
        "GET /api/v1/find/instances?text=T10" | "GET /api/v1/find/instances?text=last" => {
            items(&[found(TWO, "null", "T10"), found(ONE, r#""claimed""#, "T10")])
        }
        "GET /api/v1/find/instances?text=gone" => items(&[found(TWO, "null", "gone")]),
        "GET /api/v1/find/instances?text=01a209" => {
            items(&[found(ONE, r#""claimed""#, "T10"), found(TWO, r#""ready""#, "T11")])
        }
        line if line.starts_with("GET /api/v1/find/") => items(&[]),
        line if line.ends_with("/release") => Reply::ok(&format!(r#"{{"id":"{ONE}","released":true}}"#)),
        line if line.ends_with("/heartbeat") || line.ends_with("/extend") => {
            Reply::ok(&format!(r#"{{"id":"{ONE}","expiresAt":"2030-01-01T00:00:00.000Z"}}"#))
        }
        line if line.ends_with("/claim") => Reply::ok(&format!(
            r#"{{"id":"{ONE}","instanceId":"vm-1","source":"ready","recipe":"r","ageMs":1,"waitMs":1,"repos":[],
            "expiresAt":"2030-01-01T00:00:00.000Z","agent":{{"exec":"","files":"","terminal":"","ports":""}}}}"#
        )),
        line if line.ends_with("/exec") => {
            Reply::events(&[("exit", r#"{"exitCode":0,"signal":null,"durationMs":1,"error":null}"#)])
        }
        _ => refused("project:read"),
    }
}

#[test]
fn claim_asks_nothing_that_a_claim_token_may_not_know() {
    let fake = Fake::with_look_ups(for_a_claim_token);
    let ran = run(hearth_at(&fake.url, &["claim", "my shop", "--id-only"]));
    assert_eq!((ran.code, ran.stdout.trim()), (0, ONE), "{}", ran.stderr);
    let lines: Vec<String> = fake.requests().into_iter().map(|request| request.line).collect();
    assert_eq!(
        lines,
        [
            "GET /api/v1/find/projects?text=my+shop",
            "POST /api/v1/projects/prj_1/warm-pool/claim"
        ]
    );
    // A whole id is not even looked up.
    let fake = Fake::with_look_ups(for_a_claim_token);
    let whole = "prj_01a209bacc5b714f95acb5a1b59650f7";
    assert_eq!(run(hearth_at(&fake.url, &["claim", whole, "--id-only"])).code, 0);
    assert_eq!(fake.requests().len(), 1);
}

#[test]
fn task_and_part_of_an_id_and_last_mean_an_instance_in_every_command() {
    let fake = Fake::with_look_ups(for_a_claim_token);
    for args in [
        &["release", "T10"][..],
        &["release", "last"],
        &["exec", "T10", "-n", "--", "true"],
        &["exec", "last", "-n", "ls", "-la"],
        &["claim", "extend", "T10"],
        &["claim", "extend", "last", "--by", "60"],
    ] {
        let ran = run(hearth_at(&fake.url, args));
        assert_eq!(ran.code, 0, "{args:?}: {}", ran.stderr);
        let last = fake.requests().pop().unwrap();
        assert!(last.line.contains(ONE), "{args:?}: {}", last.line);
    }
    assert_eq!(fake.requests_of("POST").pop().unwrap().body, r#"{"minutes":60}"#);
    let exec = fake.requests_of(&format!("POST /api/v1/instances/{ONE}/exec"));
    assert!(exec[1].body.contains(r#""argv":["ls","-la"]"#), "{}", exec[1].body);
}

#[test]
fn text_that_may_mean_several_or_none_is_explained_and_nothing_is_done() {
    let fake = Fake::with_look_ups(for_a_claim_token);
    for (text, code, says) in [
        (
            "01a209",
            2,
            &["may mean 2 VMs", ONE, TWO, "for T10", "my shop", "more of the id"][..],
        ),
        ("gone", 1, &[TWO, "of task gone is gone", "hearth claims"]),
        ("nothing", 1, &["no VM `nothing`", "hearth claims"]),
    ] {
        let ran = run(hearth_at(&fake.url, &["release", text]));
        assert_eq!(ran.code, code, "{text}: {}", ran.stderr);
        assert!(
            says.iter().all(|part| ran.stderr.contains(part)),
            "{text}: {}",
            ran.stderr
        );
    }
    assert!(fake.requests_of("POST").is_empty());
}

#[test]
fn claims_show_task_owner_lease_and_age() {
    let claim = r#"{"id":"wpi_1","projectId":"prj_1","projectName":"web","taskId":"T1","owner":"ada",
        "claimedAt":"2025-01-01T00:00:00.000Z","expiresAt":"2999-01-01T00:00:00.000Z"}"#;
    let fake = Fake::with_look_ups(move |_| items(&[claim.to_owned()]));
    let ran = run(hearth_at(&fake.url, &["claims"]));
    for part in ["Lease left", "Age", "wpi_1", "web", "T1", "ada", " h "] {
        assert!(ran.stdout.contains(part), "{part}: {}", ran.stdout);
    }
}

#[test]
fn token_is_made_by_what_it_is_for() {
    let fake = Fake::with_look_ups(|_| {
        Reply::ok(
            r#"{"id":"tok_1","name":"x","owner":"ada","tenant":"default","scopes":["claim"],"projectId":null,
            "createdAt":"2025-01-01T00:00:00.000Z","lastUsedAt":null,"expiresAt":null,"token":"hearth_secret"}"#,
        )
    });
    for (used_for, more, scopes) in [
        ("agent", &["--all-projects"][..], r#"["claim"]"#),
        ("ci", &[], r#"["project:read","project:write","claim"]"#),
        ("viewer", &[], r#"["project:read"]"#),
        ("admin", &[], r#"["admin"]"#),
    ] {
        let args = [&["token", "create", "x", "--for", used_for], more].concat();
        let ran = run(hearth_at(&fake.url, &args));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let body = fake.requests().pop().unwrap().body;
        assert_eq!(body, format!(r#"{{"name":"x","scopes":{scopes}}}"#));
    }
    for wrong in [
        &["token", "create", "x"][..],
        &["token", "create", "x", "--for", "ci", "--scope", "claim"],
    ] {
        assert_eq!(run(hearth(wrong)).code, 2, "{wrong:?}");
    }
    let help = run(hearth(&["token", "create", "--help"])).stdout;
    assert!(help.contains("agent") && help.contains("coding agent"), "{help}");
}

#[test]
fn an_agents_token_says_where_it_works_and_whose_variables_it_gets() {
    let fake = Fake::with_look_ups(|request| match request.line.as_str() {
        line if line.starts_with("GET /api/v1/find/projects") => items(&[r#"{"id":"prj_1","name":"web"}"#.to_owned()]),
        _ => Reply::ok(
            r#"{"id":"tok_1","name":"bot","owner":"bot","tenant":"acme","scopes":["claim"],"projectId":null,
            "createdAt":"2025-01-01T00:00:00.000Z","lastUsedAt":null,"expiresAt":null,"token":"hearth_secret"}"#,
        ),
    });
    let create = |more: &[&str]| {
        let args = [&["token", "create", "bot", "--for", "agent"], more].concat();
        run(hearth_at(&fake.url, &args))
    };
    let nowhere = create(&[]);
    assert_eq!(nowhere.code, 2);
    for part in ["--project PROJECT", "--all-projects"] {
        assert!(nowhere.stderr.contains(part), "{part}: {}", nowhere.stderr);
    }
    assert!(fake.requests().is_empty());
    for (more, reach) in [
        (
            &["--all-projects"][..],
            "in all projects of the tenant acme, later ones included",
        ),
        (&["--project", "web"], "in the project web only"),
    ] {
        let made = create(more);
        assert_eq!((made.code, made.stdout.as_str()), (0, "hearth_secret\n"));
        for part in [
            reach,
            "of the owner bot",
            "the shared variables, and the personal ones of bot",
        ] {
            assert!(made.stderr.contains(part), "{part}: {}", made.stderr);
        }
    }
    let help = run(hearth(&["token", "create", "--help"])).stdout;
    for part in ["all projects of its tenant", "personal variables of this user"] {
        assert!(help.contains(part), "{part}: {help}");
    }
}

#[test]
fn project_that_exists_is_said_with_what_to_do_and_is_no_error_when_that_is_wanted() {
    let fake = Fake::with_look_ups(|request| match request.line.as_str() {
        "POST /api/v1/projects" => Reply::json(
            409,
            r#"{"error":{"code":"conflict","message":"the name is taken by the project prj_1","details":
            [{"path":"name","message":"is the name of the project prj_1"}]}}"#,
        ),
        line if line.starts_with("GET /api/v1/find/projects") => items(&[r#"{"id":"prj_1","name":"web"}"#.to_owned()]),
        _ => Reply::ok(PROJECT),
    });
    let ran = run(hearth_at(&fake.url, &["project", "create", "web"]));
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    for part in ["prj_1", "hearth project show web", "--exist-ok"] {
        assert!(ran.stderr.contains(part), "{}", ran.stderr);
    }
    let ran = run(hearth_at(&fake.url, &["project", "create", "web", "--exist-ok"]));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(
        ran.stdout.contains("prj_1") && ran.stderr.contains("stays as it is"),
        "{}",
        ran.stderr
    );
}

#[test]
fn hints_name_the_server_and_quote_what_a_shell_would_split() {
    let fake = Fake::with_look_ups(|request| match request.line.as_str() {
        line if line.starts_with("GET /api/v1/find/projects") => {
            items(&[r#"{"id":"prj_1","name":"my shop"}"#.to_owned()])
        }
        line if line.ends_with("/warm-pool") => Reply::ok(
            r#"{"allowed":true,"config":null,"status":{"ready":0,"provisioning":0,"failed":0},"metadata":null}"#,
        ),
        _ => Reply::not_found(),
    });
    let folder = tempfile::tempdir().unwrap();
    let _server = local_server(folder.path(), 7, &fake.url);
    let data = folder.path().join("data-7");
    let mut command = hearth(&[
        "pool",
        "status",
        "my shop",
        "--wait",
        "--data-dir",
        data.to_str().unwrap(),
    ]);
    command.env("HEARTH_RUNTIME_DIR", private(folder.path()));
    let ran = run(command);
    let shown = format!("hearth --data-dir {} pool set 'my shop' --enabled", data.display());
    assert!(ran.stderr.contains(&shown), "{}", ran.stderr);
    let ran = run(hearth_at(
        "http://127.0.0.1:1",
        &["pool", "status", "my shop", "--wait", "--url", &fake.url],
    ));
    let shown = format!("hearth --url {} pool set 'my shop' --enabled", fake.url);
    assert!(ran.stderr.contains(&shown), "{}", ran.stderr);
}

#[test]
fn token_that_lacks_a_scope_is_told_which_kind_has_it_and_no_command_that_it_may_not_use() {
    let fake = Fake::with_look_ups(for_a_claim_token);
    let ran = run(hearth_at(&fake.url, &["project", "list"]));
    assert_eq!(ran.code, 4, "{}", ran.stderr);
    assert!(
        ran.stderr
            .contains("hint: an admin makes a token that has it with `hearth token create NAME --for viewer`"),
        "{}",
        ran.stderr
    );
    let ran = run(hearth_at(&fake.url, &["claim", "nowhere"]));
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(
        ran.stderr
            .contains("hint: this token may not list projects: ask the person who made it")
            && !ran.stderr.contains("project list"),
        "{}",
        ran.stderr
    );
}
