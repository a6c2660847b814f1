//! Which server, with which token, and what is said when there is none.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::fake::{Fake, Reply};
use crate::support::{hearth, hearth_at, local_server, project_page, run};

#[test]
fn nobody_listening_is_said_with_a_hint() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let ran = run(hearth_at(&format!("http://{free}"), &["project", "list"]));
    assert_eq!(ran.code, 3);
    assert!(
        ran.stderr
            .starts_with(&format!("error: no Hearth server answers at http://{free}")),
        "{}",
        ran.stderr
    );
    assert!(
        ran.stderr.contains("hint: start a server with `hearth serve`"),
        "{}",
        ran.stderr
    );
}

#[test]
fn without_any_server_the_hint_names_both_ways() {
    let ran = run(hearth(&["project", "list"]));
    assert_eq!(ran.code, 3);
    assert!(
        ran.stderr.contains("`hearth serve`") && ran.stderr.contains("HEARTH_URL"),
        "{}",
        ran.stderr
    );
}

#[test]
fn the_local_server_is_found_with_its_token() {
    let fake = Fake::start(|_| Reply::ok(&project_page()));
    let folder = tempfile::tempdir().unwrap();
    let _living = local_server(folder.path(), 1, &fake.url);
    let mut command = hearth(&["project", "list"]);
    command.env("HEARTH_RUNTIME_DIR", folder.path());
    let ran = run(command);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("web"));
    assert!(
        fake.requests()[0]
            .headers
            .contains("authorization: bearer hearth_local\r\n")
    );
}

#[test]
fn of_two_local_servers_one_must_be_chosen() {
    let fake = Fake::start(|_| Reply::ok(&project_page()));
    let folder = tempfile::tempdir().unwrap();
    let _one = local_server(folder.path(), 1, &fake.url);
    let _two = local_server(folder.path(), 2, "http://127.0.0.1:1");
    let list = |more: &[&str]| {
        let mut command = hearth(&[&["project", "list"], more].concat());
        command.env("HEARTH_RUNTIME_DIR", folder.path());
        run(command)
    };
    let ran = list(&[]);
    assert_eq!(ran.code, 2);
    let first = folder.path().join("data-1");
    let first = first.to_str().unwrap();
    assert!(
        ran.stderr.contains("several") && ran.stderr.contains(first),
        "{}",
        ran.stderr
    );
    assert_eq!(list(&["--data-dir", first]).code, 0);
    let none = list(&["--data-dir", "/nonexistent/data"]);
    assert_eq!(none.code, 3, "{}", none.stderr);
    // For the whole shell; an option and an address are nearer.
    let from_the_environment = |data: &str, url: &str, more: &[&str]| {
        let mut command = hearth(&[&["project", "list"], more].concat());
        command
            .env("HEARTH_RUNTIME_DIR", folder.path())
            .env("HEARTH_DATA_DIR", data)
            .env("HEARTH_URL", url)
            .env("HEARTH_TOKEN", "hearth_test");
        run(command).code
    };
    assert_eq!(from_the_environment(first, "", &[]), 0);
    assert_eq!(from_the_environment("/nonexistent/data", "", &[]), 3);
    assert_eq!(from_the_environment("/nonexistent/data", "", &["--data-dir", first]), 0);
    assert_eq!(from_the_environment("/nonexistent/data", &fake.url, &[]), 0);
}

#[test]
fn a_dead_servers_entry_counts_for_nothing() {
    let folder = tempfile::tempdir().unwrap();
    drop(local_server(folder.path(), 1, "http://127.0.0.1:1"));
    let mut command = hearth(&["project", "list"]);
    command.env("HEARTH_RUNTIME_DIR", folder.path());
    let ran = run(command);
    assert_eq!(ran.code, 3);
    assert!(ran.stderr.contains("no Hearth server of yours runs"), "{}", ran.stderr);
}

#[test]
fn a_folder_that_others_can_write_to_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let _living = local_server(folder.path(), 1, "http://127.0.0.1:1");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = hearth(&["project", "list"]);
    command.env("HEARTH_RUNTIME_DIR", folder.path());
    let ran = run(command);
    assert_eq!(ran.code, 3);
    assert!(ran.stderr.contains("can be changed by others"), "{}", ran.stderr);
}

#[test]
fn a_local_servers_token_goes_to_no_other_server() {
    let fake = Fake::start(|_| Reply::ok(&project_page()));
    let folder = tempfile::tempdir().unwrap();
    let _living = local_server(folder.path(), 1, "http://127.0.0.1:1");
    let mut command = hearth(&["project", "list", "--url", &fake.url]);
    command.env("HEARTH_RUNTIME_DIR", folder.path());
    let ran = run(command);
    assert_eq!(ran.code, 4, "{}", ran.stderr);
    assert!(fake.requests().is_empty());
}

#[test]
fn a_read_is_repeated_and_a_write_is_not() {
    let seen = AtomicUsize::new(0);
    let fake = Fake::start(move |request| {
        let busy = r#"{"error":{"code":"unavailable","message":"the server is starting"}}"#;
        if request.line.starts_with("POST") || seen.fetch_add(1, Ordering::SeqCst) < 2 {
            return Reply::json(503, busy).with("retry-after: 0\r\n");
        }
        Reply::ok(&project_page())
    });
    let read = run(hearth_at(&fake.url, &["project", "list"]));
    assert_eq!(read.code, 0, "{}", read.stderr);
    assert_eq!(fake.requests_of("GET").len(), 3);
    let write = run(hearth_at(&fake.url, &["project", "create", "x"]));
    assert_eq!(write.code, 5);
    assert_eq!(fake.requests_of("POST").len(), 1);
    assert!(
        write.stderr.contains("the server is starting") && write.stderr.contains("try again"),
        "{}",
        write.stderr
    );
}

#[test]
fn a_write_that_the_server_put_off_or_that_may_be_done_twice_is_repeated() {
    let put_off = r#"{"error":{"code":"too_many_requests","message":"slow down"}}"#;
    let failing = |status: u16, body: &'static str| {
        let seen = AtomicUsize::new(0);
        Fake::start(move |request| {
            if !request.line.starts_with("GET") && seen.fetch_add(1, Ordering::SeqCst) == 0 {
                return Reply::json(status, body).with("retry-after: 0\r\n");
            }
            match &request.line {
                line if line.contains("/claim") => Reply::not_found(),
                line if line.starts_with("POST") => Reply::ok(crate::support::PROJECT),
                line if line.starts_with("PUT") => Reply::ok(r#"{"items":[]}"#),
                _ => Reply::ok(&project_page()),
            }
        })
    };
    let fake = failing(429, put_off);
    assert_eq!(run(hearth_at(&fake.url, &["project", "create", "x"])).code, 0);
    assert_eq!(fake.requests_of("POST").len(), 2);
    // For a claim it is the answer: nothing is ready.
    let fake = failing(429, put_off);
    assert_eq!(run(hearth_at(&fake.url, &["claim", "web", "--task", "t"])).code, 5);
    assert_eq!(fake.requests_of("POST").len(), 1);
    let fake = failing(503, r#"{"error":{"code":"unavailable","message":"starting"}}"#);
    assert_eq!(run(hearth_at(&fake.url, &["env", "set", "web", "A=1"])).code, 0);
    assert_eq!(fake.requests_of("PUT").len(), 2);
}

#[test]
fn projects_are_named_by_id_or_by_their_only_name() {
    let fake = Fake::start(|request| {
        if request.line.contains("/projects?") {
            let project = |id: &str, name: &str| {
                crate::support::PROJECT
                    .replace("prj_1", id)
                    .replace(r#""name":"web""#, &format!(r#""name":"{name}""#))
            };
            let items = [
                project("prj_1", "twin"),
                project("prj_2", "twin"),
                project("prj_3", "one"),
            ]
            .join(",");
            return Reply::ok(&format!(r#"{{"items":[{items}],"nextCursor":null,"hasMore":false}}"#));
        }
        if request.line.contains("/projects/prj_") {
            Reply::ok(crate::support::PROJECT)
        } else {
            Reply::not_found()
        }
    });
    let show = |name: &str| run(hearth_at(&fake.url, &["project", "show", name]));
    assert_eq!(show("one").code, 0);
    assert_eq!(show("prj_1").code, 0);
    let twin = show("twin");
    assert_eq!(twin.code, 2);
    assert!(
        twin.stderr.contains("prj_1") && twin.stderr.contains("prj_2"),
        "{}",
        twin.stderr
    );
    let none = show("none");
    assert_eq!(none.code, 1);
    assert!(none.stderr.contains("hearth project list"), "{}", none.stderr);
}

#[test]
fn full_disk_says_what_to_do_and_not_that_it_passes_by_itself() {
    for (arguments, method) in [
        (&["project", "create", "demo"][..], "POST"),
        (&["claim", "web"], "POST"),
    ] {
        let fake = Fake::start(move |request| {
            if request.line.starts_with(method) {
                let message = "the disk under the server's data folder is full; free some space, then try again";
                let body = format!(r#"{{"error":{{"code":"unavailable","message":"{message}"}}}}"#);
                return Reply::json(503, &body).with("content-type: application/json\r\nretry-after: 2\r\n");
            }
            Reply::ok(&project_page())
        });
        let ran = run(hearth_at(&fake.url, arguments));
        assert_eq!(ran.code, 5, "{}", ran.stderr);
        assert!(
            ran.stderr.contains("free some space, then try again") && !ran.stderr.contains("hint:"),
            "{}",
            ran.stderr
        );
    }
}
