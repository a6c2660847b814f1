//! `hearth backup`, `hearth restore` and `hearth uninstall` as a user types them.

use std::fs;

use nix::sys::signal::Signal;

use crate::server::Server;
use crate::support::{eventually, hearth, run};

#[test]
fn running_server_is_backed_up_restored_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    fs::create_dir_all(&first).unwrap();
    fs::create_dir_all(&second).unwrap();
    let mut server = Server::start(&first, &["--listen", "0"]);
    server.ok(&["project", "create", "demo"]);
    let file = folder.path().join("monday.tar");
    let file = file.to_str().unwrap();
    let pass = folder.path().join("pass");
    fs::write(&pass, "short\n").unwrap();
    let pass = pass.to_str().unwrap();
    let refused = run(server.client(&["backup", file, "--passphrase-file", pass]));
    assert!(
        refused.code == 2 && refused.stderr.contains("12 characters"),
        "{}",
        refused.stderr
    );
    let refused = run(server.client(&["backup", file]));
    assert!(
        refused.code == 2 && refused.stderr.contains("--without-key"),
        "{}",
        refused.stderr
    );
    fs::write(pass, "correct horse battery staple\n").unwrap();
    let said = server.ok(&["backup", file, "--passphrase-file", pass]);
    assert!(
        said.contains("monday.tar holds 1 project, 0 variables, 0 git credentials and 1 token"),
        "{said}"
    );

    let data = second.join("data");
    let data = data.to_str().unwrap();
    let restored = run(hearth(&[
        "restore",
        file,
        "--data-dir",
        data,
        "--passphrase-file",
        pass,
    ]));
    assert_eq!(restored.code, 0, "{}", restored.stderr);
    assert!(restored.stdout.contains("holds 1 project"), "{}", restored.stdout);
    assert!(
        restored.stderr.contains(&format!("hearth --data-dir {data} serve")),
        "{}",
        restored.stderr
    );
    let other = Server::start(&second, &["--listen", "0"]);
    assert!(other.ok(&["project", "list"]).contains("demo"));

    // While the server runs nothing is removed; nor is a folder that is none of Hearth's.
    let ours = first.join("data");
    let uninstall = |args: &[&str]| run(server_free(&first, args));
    let busy = uninstall(&["uninstall", "--yes"]);
    assert!(busy.code == 1 && busy.stderr.contains("stop it"), "{}", busy.stderr);
    let none = uninstall(&["uninstall", "--yes", "--data-dir", first.to_str().unwrap()]);
    assert!(
        none.code == 1 && none.stderr.contains("is no data folder"),
        "{}",
        none.stderr
    );
    server.signal(Signal::SIGTERM);
    assert!(server.wait().success());
    let unasked = uninstall(&["uninstall"]);
    assert!(
        unasked.code == 2 && unasked.stderr.contains("--yes"),
        "{}",
        unasked.stderr
    );
    assert!(ours.join("hearth.db").exists());
    fs::write(ours.join("notes.txt"), "mine").unwrap();
    let done = uninstall(&["uninstall", "--yes"]);
    assert!(
        done.code == 0 && done.stderr.contains("notes.txt"),
        "{}{}",
        done.stdout,
        done.stderr
    );
    assert_eq!(fs::read_dir(&ours).unwrap().count(), 1);
    eventually("no server's entry is left", || !first.join("run").exists());
}

fn server_free(folder: &std::path::Path, args: &[&str]) -> std::process::Command {
    let mut command = hearth(args);
    command
        .env("HEARTH_DATA_DIR", folder.join("data"))
        .env("HEARTH_RUNTIME_DIR", folder.join("run"))
        .env("PATH", std::env::var_os("PATH").unwrap());
    command
}
