//! `hearth store move` and `hearth serve --database` as a user types them.

use std::fs;

use nix::sys::signal::Signal;

use crate::server::Server;
use crate::support::{hearth, run};

#[test]
fn address_of_a_database_is_never_quoted_with_its_password() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let data = data.to_str().unwrap();
    for command in [["serve", "--database"].as_slice(), &["store", "move", "--to"]] {
        for (url, code, said) in [
            (
                "mysql://hearth:s3cret@h/d",
                2,
                "it begins with neither postgres:// nor postgresql://",
            ),
            ("postgres://hearth:s3cret@h:port/d", 2, "invalid port number"),
            (
                "postgres://hearth@h/d?password=s3cret",
                2,
                "`password` is nothing that can be said in it",
            ),
        ] {
            let mut words = command.to_vec();
            words.extend([url, "--data-dir", data]);
            let refused = run(hearth(&words));
            assert_eq!(refused.code, code, "{}", refused.stderr);
            assert!(refused.stderr.contains(said), "{}", refused.stderr);
            assert!(!refused.stderr.contains("s3cret"), "{}", refused.stderr);
        }
    }
    let nowhere = run(hearth(&["store", "move", "--data-dir", data]));
    assert!(
        nowhere.code == 2 && nowhere.stderr.contains("HEARTH_DATABASE"),
        "{}",
        nowhere.stderr
    );
    let nothing = run(hearth(&["store", "move", "--data-dir", data, "--to", "postgres://h/d"]));
    assert!(
        nothing.code == 1 && nothing.stderr.contains("holds no hearth.db"),
        "{}",
        nothing.stderr
    );
}

#[test]
#[ignore = "needs PostgreSQL (all: cargo xtask test; alone: cargo xtask test NAME)"]
fn store_is_moved_and_served_by_what_the_command_says() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path(), &["--listen", "0"]);
    server.ok(&["project", "create", "demo"]);
    let data = folder.path().join("data");
    let (data, url) = (data.to_str().unwrap(), hearth_test_postgres::shared().database());
    let moving = || {
        let mut command = hearth(&["store", "move", "--data-dir", data]);
        command.env("HEARTH_DATABASE", &url);
        run(command)
    };
    let busy = moving();
    assert!(busy.code == 1 && busy.stderr.contains("stop it"), "{}", busy.stderr);
    server.signal(Signal::SIGTERM);
    server.wait();
    let moved = moving();
    assert_eq!(moved.code, 0, "{}", moved.stderr);
    assert!(
        moved
            .stdout
            .contains("of 30 tables are in postgres://hearth@localhost/"),
        "{}",
        moved.stdout
    );
    assert!(moved.stderr.contains("serve --database"), "{}", moved.stderr);
    assert!(fs::exists(folder.path().join("data/hearth.db.moved")).unwrap());
    let forgotten = run(hearth(&[
        "serve",
        "--driver",
        "fake",
        "--listen",
        "0",
        "--data-dir",
        data,
    ]));
    assert!(
        forgotten.code == 1 && forgotten.stderr.contains("--database postgres://"),
        "{}",
        forgotten.stderr
    );
    let server = Server::start(folder.path(), &["--listen", "0", "--database", &url]);
    assert!(server.ok(&["project", "list"]).contains("demo"));
    let backup = run(server.client(&["backup", "/nowhere/x.tar", "--without-key"]));
    assert!(
        backup.code == 1 && backup.stderr.contains("pg_dump"),
        "{}",
        backup.stderr
    );
}
