//! `hearth cp` and `hearth ls`: what lands where, and that nothing lands anywhere else.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tar::EntryType;

use crate::fake::{Fake, Reply, Request};
use crate::support::{Ran, eventually, hearth_at, run, run_with_stdin};

const FILE: &str = "content-type: application/octet-stream\r\netag: \"v1\"\r\nhearth-file-mode: 0750\r\n";

pub(crate) fn entry(name: &str, kind: &str) -> String {
    format!(
        r#"{{"name":"{name}","nameBase64":null,"path":"/home/{name}","kind":"{kind}","size":12,"mode":"0640","uid":0,"gid":0,
        "owner":"root","group":"adm","modifiedAt":"2025-01-01T00:00:00.000Z","symlinkTarget":null}}"#
    )
}

fn missing(name: &str) -> Reply {
    let body = format!(r#"{{"error":{{"code":"not_found","message":"/home/{name} does not exist"}}}}"#);
    Reply::json(404, &body)
}

/// A VM with one file `app.conf`.
fn one_file(text: &'static str) -> Fake {
    Fake::start(move |request: &Request| {
        if request.line.contains("/files/stat?") {
            return Reply::ok(&entry("app.conf", "file"));
        }
        Reply::ok(text).with(FILE)
    })
}

/// Runs it in this folder.
fn run_in(folder: &Path, mut command: Command) -> Ran {
    command.current_dir(folder);
    run(command)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_file_comes_out_with_its_mode_and_one_that_is_here_keeps_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let fake = one_file("hello\n");
    let cp = |to: &str| run_in(folder.path(), hearth_at(&fake.url, &["cp", "wpi_1:app.conf", to]));
    let ran = cp("copy");
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (0, "", ""));
    assert_eq!(fs::read(folder.path().join("copy")).unwrap(), b"hello\n");
    assert_eq!(mode(&folder.path().join("copy")), 0o750);
    let request = &fake.requests_of("GET /api/v1/instances/wpi_1/files?")[0];
    assert_eq!(request.line, "GET /api/v1/instances/wpi_1/files?path=app.conf");
    // Into a folder, and through a link.
    fs::create_dir(folder.path().join("d")).unwrap();
    assert_eq!(cp("d").code, 0);
    assert_eq!(names(&folder.path().join("d")), ["app.conf"]);
    fs::write(folder.path().join("own"), "mine").unwrap();
    fs::set_permissions(folder.path().join("own"), fs::Permissions::from_mode(0o600)).unwrap();
    symlink("own", folder.path().join("link")).unwrap();
    assert_eq!(cp("link").code, 0);
    assert_eq!(fs::read(folder.path().join("own")).unwrap(), b"hello\n");
    assert_eq!(mode(&folder.path().join("own")), 0o600);
    assert!(fs::symlink_metadata(folder.path().join("link")).unwrap().is_symlink());
    // To standard output, and as data for programs.
    let ran = cp("-");
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "hello\n"));
    let ran = run_in(
        folder.path(),
        hearth_at(&fake.url, &["cp", "--json", "wpi_1:app.conf", "x"]),
    );
    let copied: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&copied["files"], &copied["bytes"]), (&1.into(), &6.into()));
    // A folder that is not there is not made.
    let ran = cp("new/");
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("new/ is no folder here"), "{}", ran.stderr);
}

#[test]
fn a_connection_that_breaks_is_gone_on_with_and_a_changed_file_is_read_anew() {
    for (is_same, text) in [(true, "0123456789"), (false, "another")] {
        let folder = tempfile::tempdir().unwrap();
        let fake = Fake::start(move |request: &Request| {
            if request.line.contains("/files/stat?") {
                return Reply::ok(&entry("app.conf", "file"));
            }
            if !request.headers.contains("range: bytes=4-") {
                return Reply::ok("0123").with(FILE).promising(10);
            }
            assert!(request.headers.contains("if-range: \"v1\""), "{}", request.headers);
            if is_same {
                return Reply::json(206, "456789").with(FILE);
            }
            Reply::ok("another").with(FILE)
        });
        let ran = run_in(folder.path(), hearth_at(&fake.url, &["cp", "wpi_1:app.conf", "copy"]));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert_eq!(fs::read_to_string(folder.path().join("copy")).unwrap(), text);
        assert_eq!(names(folder.path()), ["copy"]);
        let ran = run(hearth_at(&fake.url, &["cp", "wpi_1:app.conf", "-"]));
        assert_eq!(ran.code == 0, is_same, "{}", ran.stderr);
    }
}

#[test]
fn an_interrupted_copy_leaves_what_was_there() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("copy"), "old").unwrap();
    let fake = Fake::start(|request: &Request| {
        if request.line.contains("/files/stat?") {
            return Reply::ok(&entry("app.conf", "file"));
        }
        Reply::ok("half").with(FILE).promising(10).held_open()
    });
    let mut command = hearth_at(&fake.url, &["cp", "wpi_1:app.conf", "copy"]);
    let mut child = command.current_dir(folder.path()).spawn().unwrap();
    eventually("half of it is here", || {
        let half = names(folder.path())
            .into_iter()
            .find(|name| name.starts_with(".hearth-"));
        half.is_some_and(|half| fs::read(folder.path().join(half)).is_ok_and(|bytes| bytes == b"half"))
    });
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(names(folder.path()), ["copy"]);
    assert_eq!(fs::read(folder.path().join("copy")).unwrap(), b"old");
}

/// What a VM sends: path, kind, where it leads, text.
type Sent<'a> = (&'a str, EntryType, &'a str, &'a str);

fn stream(entries: &[Sent<'_>]) -> String {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, kind, link, text) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o4755);
        header.set_size(text.len() as u64);
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        builder.append(&header, text.as_bytes()).unwrap();
    }
    String::from_utf8(builder.into_inner().unwrap()).unwrap()
}

/// A VM whose folder `app` comes as this stream.
fn one_folder(entries: &[Sent<'_>]) -> Fake {
    let stream = stream(entries);
    Fake::start(move |request: &Request| {
        if request.line.contains("/files/stat?") {
            return Reply::ok(&entry("app", "directory"));
        }
        Reply::ok(&stream).with("content-type: application/x-tar\r\n")
    })
}

#[test]
fn a_folder_comes_out_into_a_folder_or_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let fake = one_folder(&[
        ("sub/", EntryType::Directory, "", ""),
        ("sub/run", EntryType::Regular, "", "text"),
        ("in", EntryType::Symlink, "sub/run", ""),
        ("out", EntryType::Symlink, "/etc/passwd", ""),
        ("pipe", EntryType::Fifo, "", ""),
    ]);
    let cp = |from: &str, to: &str| run_in(folder.path(), hearth_at(&fake.url, &["cp", "-r", from, to]));
    for (from, to, place) in [
        ("wpi_1:app", "new", "new"),
        ("wpi_1:app", ".", "app"),
        ("wpi_1:app", "new", "new/app"),
        ("wpi_1:/home/app/.", "content", "content"),
        ("wpi_1:/home/app/.", "content", "content"),
    ] {
        let ran = cp(from, to);
        assert_eq!(ran.code, 0, "{from} {to}: {}", ran.stderr);
        let place = folder.path().join(place);
        assert_eq!(fs::read(place.join("in")).unwrap(), b"text", "{from} {to}");
        // No set-user-id bit, no link to the outside, no pipe.
        assert_eq!(mode(&place.join("sub/run")), 0o755);
        assert!(!names(&place).contains(&"out".to_owned()) && !names(&place).contains(&"pipe".to_owned()));
        assert!(
            ran.stderr
                .contains("not copied: out: it is a link to /etc/passwd, outside of the folder")
                && ran.stderr.contains("not copied: pipe: it is a device or a pipe"),
            "{}",
            ran.stderr
        );
    }
    assert_eq!(names(&folder.path().join("content")), ["in", "sub"]);
}

#[test]
fn a_hostile_vm_writes_nothing_outside_of_the_folder() {
    let cases: [(&[Sent<'_>], i32); 6] = [
        (&[("../x", EntryType::Regular, "", "x")], 1),
        (&[("/tmp/hearth-hostile", EntryType::Regular, "", "x")], 1),
        // The link is not made, so a folder takes its place.
        (
            &[
                ("a", EntryType::Symlink, "..", ""),
                ("a/x", EntryType::Regular, "", "x"),
            ],
            0,
        ),
        (
            &[("a", EntryType::Symlink, ".", ""), ("a/x", EntryType::Regular, "", "x")],
            1,
        ),
        (&[("planted/x", EntryType::Regular, "", "x")], 1),
        (&[("a", EntryType::Link, "../secret", "")], 1),
    ];
    for (entries, code) in cases {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("secret"), "s").unwrap();
        fs::create_dir(folder.path().join("target")).unwrap();
        // The user's own link, which an earlier copy may have met.
        symlink("..", folder.path().join("target/planted")).unwrap();
        let fake = one_folder(entries);
        let ran = run_in(folder.path(), hearth_at(&fake.url, &["cp", "wpi_1:app/.", "target"]));
        assert_eq!(ran.code, code, "{entries:?}");
        let said = match code {
            0 => "a: it is a link to .., outside of the folder",
            _ => "would land outside of the folder",
        };
        assert!(ran.stderr.contains(said), "{}", ran.stderr);
        assert_eq!(names(folder.path()), ["secret", "target"], "{entries:?}");
        assert!(!Path::new("/tmp/hearth-hostile").exists());
    }
}

#[test]
fn a_vm_cannot_choose_where_a_copy_lands_by_a_name() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["..", "../x", "a/b", "."] {
        let name = name.to_owned();
        let fake = Fake::start(move |request: &Request| {
            if request.line.contains("/files/stat?") {
                return Reply::ok(&entry(&name, "directory"));
            }
            Reply::ok(&stream(&[])).with("content-type: application/x-tar\r\n")
        });
        let ran = run_in(folder.path(), hearth_at(&fake.url, &["cp", "wpi_1:..", "."]));
        assert_eq!(ran.code, 1);
        assert!(ran.stderr.contains("is no name for a file here"), "{}", ran.stderr);
    }
}

#[test]
fn files_and_folders_go_in() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("src/sub")).unwrap();
    fs::write(folder.path().join("src/sub/a"), "aaa").unwrap();
    fs::write(folder.path().join("tool"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(folder.path().join("tool"), fs::Permissions::from_mode(0o755)).unwrap();
    let fake = Fake::start(|request: &Request| {
        if request.line.starts_with("GET ") && request.line.contains("path=app&") {
            return Reply::ok(&entry("app", "directory"));
        }
        if request.line.starts_with("GET ") && request.line.contains("path=there") {
            return Reply::ok(&entry("there", "file"));
        }
        if request.line.starts_with("GET ") {
            return missing("x");
        }
        if request.line.contains("/files/tar?") {
            return Reply::ok(r#"{"files":1,"bytes":3,"leftOut":0,"failed":0,"named":[]}"#);
        }
        Reply::ok(&entry("x", "file"))
    });
    let cp = |from: &str, to: &str| {
        let ran = run_in(folder.path(), hearth_at(&fake.url, &["cp", "--user", "dev", from, to]));
        assert_eq!(ran.code, 0, "{from} {to}: {}", ran.stderr);
        fake.requests_of("PUT ").pop().unwrap()
    };
    let files = "PUT /api/v1/instances/wpi_1/files";
    let put = cp("tool", "wpi_1:new");
    assert_eq!(put.line, format!("{files}?path=new&user=dev&mode=0755"));
    assert_eq!(put.body, "#!/bin/sh\n");
    // A file that is there keeps its mode; a folder takes the file in.
    assert_eq!(cp("tool", "wpi_1:there").line, format!("{files}?path=there&user=dev"));
    let put = cp("tool", "wpi_1:app");
    assert_eq!(put.line, format!("{files}?path=app%2Ftool&user=dev&mode=0755"));
    let put = cp("tool", "wpi_1:dir/");
    assert_eq!(put.line, format!("{files}?path=dir%2Ftool&user=dev&mode=0755"));
    // Folders.
    for (from, to, path) in [
        ("src", "wpi_1:new", "new"),
        ("src", "wpi_1:app", "app%2Fsrc"),
        ("src/.", "wpi_1:app", "app"),
    ] {
        let put = cp(from, to);
        assert_eq!(put.line, format!("{files}/tar?path={path}&user=dev"));
        let mut archive = tar::Archive::new(put.body.as_bytes());
        let paths: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(paths, ["sub", "sub/a"]);
    }
    let ran = run_with_stdin(hearth_at(&fake.url, &["cp", "-", "wpi_1:new"]), b"from a pipe");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let put = fake.requests_of("PUT ").pop().unwrap();
    assert_eq!(
        (put.line, put.body.as_str()),
        (format!("{files}?path=new"), "from a pipe")
    );
}

#[test]
fn what_makes_no_copy_is_said_before_anything_is_done() {
    let folder = tempfile::tempdir().unwrap();
    for (places, said) in [
        (["a", "b"], "one side of a copy is a VM"),
        (["wpi_1:a", "wpi_2:b"], "one side of a copy is a VM"),
        (["-", "-"], "one side of a copy is a VM"),
    ] {
        let ran = run_in(
            folder.path(),
            hearth_at("http://127.0.0.1:1", &["cp", places[0], places[1]]),
        );
        assert_eq!(ran.code, 2, "{places:?}");
        assert!(
            ran.stderr.contains(said) && ran.stderr.contains("hint:"),
            "{}",
            ran.stderr
        );
    }
    let fake = Fake::start(|_: &Request| missing("x"));
    let ran = run_in(folder.path(), hearth_at(&fake.url, &["cp", "none", "wpi_1:x"]));
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.starts_with("error: none: No such file"), "{}", ran.stderr);
    let ran = run_in(folder.path(), hearth_at(&fake.url, &["cp", "wpi_1:x", "."]));
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("/home/x does not exist"), "{}", ran.stderr);
    assert!(names(folder.path()).is_empty());
}

#[test]
fn a_folder_that_was_not_read_completely_is_no_success() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("src")).unwrap();
    let fake = Fake::start(|request: &Request| {
        if request.line.starts_with("GET ") {
            return missing("x");
        }
        Reply::ok(r#"{"files":1,"bytes":3,"leftOut":0,"failed":2,"named":["a: Permission denied","b: gone"]}"#)
    });
    let ran = run_in(folder.path(), hearth_at(&fake.url, &["cp", "src", "wpi_1:x"]));
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains("not copied: a: Permission denied") && ran.stderr.contains("2 entries could not be read"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_folder_is_listed_as_a_table_or_as_the_api_has_it() {
    let fake = Fake::start(|request: &Request| {
        if request.line.contains("path=file") && request.line.contains("/list?") {
            let body = r#"{"error":{"code":"conflict","message":"/home/file is not a folder"}}"#;
            return Reply::json(409, body);
        }
        if request.line.contains("/stat?") {
            return Reply::ok(&entry("file", "file"));
        }
        let items = [entry("app", "directory"), entry("a\\u001b[31m\\nb", "file")].join(",");
        Reply::ok(&format!(
            r#"{{"items":[{items}],"truncated":true,"unreadable":["/home/x"]}}"#
        ))
    });
    let ran = run(hearth_at(&fake.url, &["ls", "wpi_1"]));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(fake.requests()[0].line.contains("/files/list?path=.&depth=1"));
    assert!(
        ran.stdout.contains("drw-r-----") && ran.stdout.contains("root:adm") && !ran.stdout.contains('\u{1b}'),
        "{}",
        ran.stdout
    );
    assert!(
        ran.stderr.contains("not read: /home/x") && ran.stderr.contains("there are more entries"),
        "{}",
        ran.stderr
    );
    let ran = run(hearth_at(&fake.url, &["ls", "--json", "wpi_1", "app", "--depth", "3"]));
    let list: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(list["items"][0]["name"], "app");
    let ran = run(hearth_at(&fake.url, &["ls", "wpi_1", "file"]));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("-rw-r-----"), "{}", ran.stdout);
}
