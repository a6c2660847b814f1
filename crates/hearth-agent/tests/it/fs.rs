//! Files for people: parts, what is kept, lists, moves, removals, other users, and what is refused with which code.

use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use hearth_guest::client::{AgentClient, AgentError, NewFile, Upload};
use hearth_guest::files::{EntryKind, FaultCode, Part};

use crate::support::*;

const MAX: usize = 64 << 20;

fn refused(result: Result<impl Sized, AgentError>) -> (u16, Option<FaultCode>, String) {
    match result {
        Err(AgentError::Refused { status, message, code }) => (status, code, message),
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("it was accepted"),
    }
}

/// Status and code of a refusal whose message has a sentence.
fn code_of(result: Result<impl Sized, AgentError>) -> (u16, FaultCode) {
    let (status, code, message) = refused(result);
    assert!(message.len() > 10 && !message.contains("os error"), "{message}");
    (status, code.unwrap_or_else(|| panic!("without a code: {message}")))
}

async fn text_of(client: &AgentClient, path: &str, part: Part) -> String {
    let file = client.read_part(path, None, part, None).await.unwrap();
    let length = file.head.length;
    let body = file.body.collect(MAX).await.unwrap();
    assert_eq!(body.len() as u64, length);
    String::from_utf8(body).unwrap()
}

#[tokio::test]
async fn parts_of_a_file_are_read_and_a_changed_file_is_read_whole() {
    let agent = Agent::start();
    let client = agent.client().await;
    let path = agent.path_text("file");
    std::fs::write(&path, "0123456789").unwrap();
    for (part, text) in [
        (Part::Whole, "0123456789"),
        (Part::From(3, None), "3456789"),
        (Part::From(3, Some(2)), "34"),
        (Part::From(8, Some(100)), "89"),
        (Part::Last(4), "6789"),
        (Part::Last(40), "0123456789"),
    ] {
        assert_eq!(text_of(&client, &path, part).await, text, "{part:?}");
    }
    let head = client
        .read_part(&path, None, Part::From(3, Some(2)), None)
        .await
        .unwrap()
        .head;
    assert_eq!((head.size, head.offset, head.length), (10, 3, 2));
    assert_eq!(
        code_of(client.read_part(&path, None, Part::From(10, None), None).await),
        (416, FaultCode::Range)
    );
    let part = |tag| client.read_part(&path, None, Part::From(3, Some(2)), tag);
    assert_eq!(part(Some(head.tag.as_str())).await.unwrap().head.length, 2);
    std::fs::write(&path, "another").unwrap();
    assert_eq!(part(Some(head.tag.as_str())).await.unwrap().head.length, 7);
}

#[tokio::test]
async fn what_has_no_end_is_refused_and_what_does_not_know_its_length_is_read() {
    let agent = Agent::start();
    let client = agent.client().await;
    assert!(
        text_of(&client, "/proc/self/status", Part::Whole)
            .await
            .contains("VmRSS")
    );
    assert_eq!(
        text_of(&client, "/proc/self/status", Part::From(0, Some(5))).await,
        "Name:"
    );
    let fifo = agent.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in ["/dev/zero", "/dev/tty", "/proc/self/pagemap", fifo.to_str().unwrap()] {
        let read = client.read_part(path, None, Part::Whole, None).await;
        assert_eq!(code_of(read), (409, FaultCode::NotFile), "{path}");
        let written = client.replace_file(path, NewFile::default(), "x").await;
        let (status, code) = code_of(written);
        let is_plain = path.starts_with("/proc");
        let expected = if is_plain {
            (403, FaultCode::Denied)
        } else {
            (409, FaultCode::NotFile)
        };
        assert_eq!((status, code), expected, "{path}");
    }
}

#[tokio::test]
async fn a_written_file_keeps_the_mode_that_it_had_and_a_link_is_followed() {
    let agent = Agent::start();
    let client = agent.client().await;
    let path = agent.path_text("new/deep/run me\nnow");
    let entry = client.replace_file(&path, NewFile::default(), "one").await.unwrap();
    assert_eq!((entry.kind, entry.size, entry.mode), (EntryKind::File, 3, 0o644));
    assert_eq!(
        (entry.name.as_str(), entry.path.as_str()),
        ("run me\nnow", path.as_str())
    );
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o6751)).unwrap();
    let before = std::fs::metadata(&path).unwrap();
    let entry = client.replace_file(&path, NewFile::default(), "three").await.unwrap();
    assert_eq!((entry.size, entry.mode), (5, 0o6751));
    // Another file took its place: who reads the old one reads it to its end.
    assert_ne!(std::fs::metadata(&path).unwrap().ino(), before.ino());
    let wanted = NewFile {
        mode: Some(0o600),
        ..NewFile::default()
    };
    assert_eq!(client.replace_file(&path, wanted, "x").await.unwrap().mode, 0o600);
    let link = agent.path_text("link");
    symlink("new/deep/run me\nnow", &link).unwrap();
    let entry = client.replace_file(&link, NewFile::default(), "through").await.unwrap();
    assert_eq!(entry.path, path);
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(std::fs::read(&path).unwrap(), b"through");
    symlink("nowhere", agent.path("dangling")).unwrap();
    let written = client
        .replace_file(&agent.path_text("dangling"), NewFile::default(), "x")
        .await;
    assert_eq!(code_of(written), (409, FaultCode::Conflict));
    let names = std::fs::read_dir(agent.path("new/deep")).unwrap().count();
    assert_eq!(names, 1, "nothing is left beside it");
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_the_old_file() {
    let agent = Agent::start();
    let client = agent.client().await;
    let path = agent.path_text("folder/file");
    client.replace_file(&path, NewFile::default(), "old").await.unwrap();
    let broken = futures::stream::iter([Ok("new".into()), Err(std::io::Error::other("the source broke"))]);
    client
        .replace_file(&path, NewFile::default(), Upload::from_stream(broken))
        .await
        .unwrap_err();
    eventually("only the old file is there", async || {
        (std::fs::read_dir(agent.path("folder")).unwrap().count() == 1).then_some(())
    })
    .await;
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
}

#[tokio::test]
async fn lists_have_levels_a_bound_and_strange_names() {
    let agent = Agent::start();
    let client = agent.client().await;
    let top = agent.path("top");
    std::fs::create_dir_all(top.join("a/b/c")).unwrap();
    std::fs::write(top.join("a/file"), "x").unwrap();
    symlink("a", top.join("z link")).unwrap();
    std::fs::write(top.join(std::ffi::OsStr::from_bytes(b"\xff\n")), "").unwrap();
    let path = top.to_str().unwrap();
    let names = |list: &hearth_guest::files::EntryList| -> Vec<String> {
        let names = list
            .items
            .iter()
            .map(|entry| entry.path.strip_prefix(path).unwrap().to_owned());
        names.collect()
    };
    let list = client.list_folder(path, None, 1, 100).await.unwrap();
    assert_eq!(names(&list), ["/a", "/z link", "/\u{fffd}\n"]);
    assert!(!list.truncated && list.unreadable.is_empty());
    assert_eq!(list.items[1].target.as_deref(), Some("a"));
    assert_eq!(list.items[2].name_base64.as_deref(), Some("/wo="));
    assert_eq!(list.items[0].name_base64, None);
    let list = client.list_folder(path, None, 3, 100).await.unwrap();
    assert_eq!(
        names(&list),
        ["/a", "/a/b", "/a/b/c", "/a/file", "/z link", "/\u{fffd}\n"]
    );
    // What is cut are the lower levels.
    let list = client.list_folder(path, None, 3, 4).await.unwrap();
    assert_eq!((names(&list).len(), list.truncated), (4, true));
    assert!(list.items.iter().any(|entry| entry.name == "z link"));
    // A link that is asked for is followed.
    let list = client
        .list_folder(&format!("{path}/z link"), None, 1, 100)
        .await
        .unwrap();
    assert_eq!(names(&list), ["/z link/b", "/z link/file"]);
    for (path, refusal) in [
        (agent.path_text("none"), (404, FaultCode::NotFound)),
        (format!("{path}/a/file"), (409, FaultCode::NotFolder)),
    ] {
        assert_eq!(code_of(client.list_folder(&path, None, 1, 100).await), refusal);
    }
}

#[tokio::test]
async fn a_folder_of_many_files_is_cut_and_says_so() {
    let agent = Agent::start();
    let client = agent.client().await;
    let folder = agent.path("many");
    std::fs::create_dir(&folder).unwrap();
    for number in 0..1200 {
        std::fs::write(folder.join(number.to_string()), "").unwrap();
    }
    let list = client
        .list_folder(folder.to_str().unwrap(), None, 1, 1000)
        .await
        .unwrap();
    assert_eq!((list.items.len(), list.truncated), (1000, true));
    let list = client
        .list_folder(folder.to_str().unwrap(), None, 1, 1200)
        .await
        .unwrap();
    assert_eq!((list.items.len(), list.truncated), (1200, false));
}

#[tokio::test]
async fn folders_are_made_moved_and_removed_and_conflicts_are_named() {
    let agent = Agent::start();
    let client = agent.client().await;
    let path = |name: &str| agent.path_text(name);
    let entry = client.make_folder(&path("a/b"), NewFile::default()).await.unwrap();
    assert_eq!((entry.kind, entry.mode), (EntryKind::Directory, 0o755));
    let make = |name: &str| {
        let path = path(name);
        let client = &client;
        async move { client.make_folder(&path, NewFile::default()).await }
    };
    assert_eq!(code_of(make("a/b").await), (409, FaultCode::Exists));
    client
        .replace_file(&path("a/file"), NewFile::default(), "1")
        .await
        .unwrap();
    assert_eq!(code_of(make("a/file").await), (409, FaultCode::NotFolder));
    assert_eq!(code_of(make("a/file/x").await), (409, FaultCode::NotFolder));
    client
        .replace_file(&path("other"), NewFile::default(), "2")
        .await
        .unwrap();
    let rename = |from: &str, to: &str, replace| {
        let (from, to) = (path(from), path(to));
        let client = &client;
        async move { client.move_entry(&from, &to, None, replace).await }
    };
    assert_eq!(
        code_of(rename("a/file", "other", false).await),
        (409, FaultCode::Exists)
    );
    assert_eq!(code_of(rename("none", "x/y", true).await), (404, FaultCode::NotFound));
    assert!(!agent.path("x").exists());
    assert_eq!(code_of(rename("a", "a/b/c", false).await), (409, FaultCode::Conflict));
    assert_eq!(code_of(rename("other", "a", true).await), (409, FaultCode::IsFolder));
    let moved = rename("a/file", "other", true).await.unwrap();
    assert_eq!((moved.path, moved.size), (path("other"), 1));
    rename("other", "new/place/file", false).await.unwrap();
    assert_eq!(std::fs::read(path("new/place/file")).unwrap(), b"1");
    let remove = |name: &str, recursive| {
        let path = path(name);
        let client = &client;
        async move { client.remove_entry(&path, None, recursive).await }
    };
    assert_eq!(code_of(remove("new", false).await), (409, FaultCode::NotEmpty));
    // The link goes, and not what it leads to.
    symlink("place", agent.path("new/link")).unwrap();
    remove("new/link", true).await.unwrap();
    assert!(agent.path("new/place/file").exists());
    remove("new", true).await.unwrap();
    remove("a/b", false).await.unwrap();
    assert!(!agent.path("new").exists() && !agent.path("a/b").exists());
    assert_eq!(code_of(remove("new", true).await), (404, FaultCode::NotFound));
    assert_eq!(
        code_of(client.remove_entry("/", None, true).await),
        (400, FaultCode::Invalid)
    );
    assert_eq!(
        code_of(client.remove_entry("/tmp/..", None, true).await),
        (400, FaultCode::Invalid)
    );
}

#[tokio::test]
async fn a_full_disk_and_a_bad_path_have_sentences() {
    let agent = Agent::start();
    let client = agent.client().await;
    assert_eq!(code_of(client.entry("relative", None).await), (400, FaultCode::Invalid));
    assert_eq!(code_of(client.entry("/a\0b", None).await), (400, FaultCode::Invalid));
    let long = format!("/{}", "x".repeat(5000));
    assert_eq!(code_of(client.entry(&long, None).await), (400, FaultCode::Invalid));
    assert_eq!(
        code_of(client.entry("/no/such", None).await),
        (404, FaultCode::NotFound)
    );
    assert_eq!(
        code_of(client.entry("/etc/passwd/x", None).await),
        (409, FaultCode::NotFolder)
    );
    assert_eq!(
        code_of(client.read_part("/etc", None, Part::Whole, None).await),
        (409, FaultCode::IsFolder)
    );
    symlink("circle", agent.path("circle")).unwrap();
    let circle = client
        .read_part(&agent.path_text("circle"), None, Part::Whole, None)
        .await;
    assert_eq!(code_of(circle), (409, FaultCode::Conflict));
    let home = client.entry("~", None).await.unwrap();
    assert_eq!(home.kind, EntryKind::Directory);
    let (status, _, message) = refused(client.entry("/", Some("no-such-user")).await);
    assert_eq!(
        (status, message.as_str()),
        (400, "there is no user \"no-such-user\" in this VM")
    );
    let written = client
        .replace_file(&agent.path_text("x/"), NewFile::default(), "x")
        .await;
    assert_eq!(code_of(written), (409, FaultCode::IsFolder));
}

#[tokio::test]
#[ignore = "needs root (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn as_root_a_full_disk_is_said_to_be_full() {
    let agent = Agent::start();
    let client = agent.client().await;
    let disk = agent.path("disk");
    std::fs::create_dir(&disk).unwrap();
    let kind = Some("tmpfs");
    nix::mount::mount(kind, &disk, kind, nix::mount::MsFlags::empty(), Some("size=64k")).unwrap();
    let path = disk.join("file").to_str().unwrap().to_owned();
    let written = client.replace_file(&path, NewFile::default(), vec![1; 1 << 20]).await;
    let left = std::fs::read_dir(&disk).unwrap().count();
    nix::mount::umount(&disk).unwrap();
    assert_eq!(code_of(written), (507, FaultCode::NoSpace));
    assert_eq!(left, 0, "half a file is no file");
}

#[tokio::test]
#[ignore = "needs root (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn as_root_another_user_has_that_users_permissions_and_no_more() {
    let agent = Agent::start();
    let client = agent.client().await;
    let open = |name: &str, mode| {
        std::fs::set_permissions(agent.path(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open("", 0o755);
    let path = |name: &str| agent.path_text(name);
    let daemon = Some("daemon");
    let by_daemon = NewFile {
        user: daemon,
        ..NewFile::default()
    };
    let denied = (403, FaultCode::Denied);
    // The folder is root's.
    assert_eq!(code_of(client.replace_file(&path("x"), by_daemon, "x").await), denied);
    assert_eq!(code_of(client.make_folder(&path("d"), by_daemon).await), denied);
    let for_daemon = NewFile {
        owner: daemon,
        ..NewFile::default()
    };
    let entry = client.make_folder(&path("own"), for_daemon).await.unwrap();
    assert_eq!((entry.uid, entry.owner.as_str()), (1, "daemon"));
    let entry = client
        .replace_file(&path("own/sub/file"), by_daemon, "x")
        .await
        .unwrap();
    assert_eq!((entry.uid, entry.gid, entry.owner.as_str()), (1, 1, "daemon"));
    assert_eq!(std::fs::metadata(path("own/sub")).unwrap().uid(), 1);
    // Root writes it; it stays the daemon's.
    let entry = client
        .replace_file(&path("own/sub/file"), NewFile::default(), "y")
        .await
        .unwrap();
    assert_eq!(entry.uid, 1);
    // Giving away is root's alone.
    let give = NewFile {
        owner: Some("root"),
        ..by_daemon
    };
    assert_eq!(
        code_of(client.replace_file(&path("own/sub/file"), give, "z").await),
        denied
    );
    assert_eq!(std::fs::read(path("own/sub/file")).unwrap(), b"y");
    // What it may not read, write, see or remove.
    std::fs::write(path("own/roots"), "secret").unwrap();
    open("own/roots", 0o600);
    let read = client.read_part(&path("own/roots"), daemon, Part::Whole, None).await;
    assert_eq!(code_of(read), denied);
    // Though it may replace entries of its folder: to write a file means to have that file's permission.
    assert_eq!(
        code_of(client.replace_file(&path("own/roots"), by_daemon, "x").await),
        denied
    );
    std::fs::create_dir(path("closed")).unwrap();
    open("closed", 0o700);
    assert_eq!(code_of(client.entry(&path("closed/x"), daemon).await), denied);
    assert_eq!(
        code_of(client.list_folder(&path("closed"), daemon, 1, 10).await),
        denied
    );
    let list = client.list_folder(&path(""), daemon, 2, 100).await.unwrap();
    assert!(list.unreadable.iter().any(|path| path.ends_with("/closed")), "{list:?}");
    assert_eq!(
        code_of(client.remove_entry(&path("closed"), daemon, true).await),
        denied
    );
    assert_eq!(
        code_of(client.move_entry(&path("closed"), &path("own/c"), daemon, false).await),
        denied
    );
    // A group of the user's counts as well.
    std::fs::write(path("grouped"), "g").unwrap();
    nix::unistd::chown(&agent.path("grouped"), None, Some(nix::unistd::Gid::from_raw(1))).unwrap();
    open("grouped", 0o640);
    let read = client
        .read_part(&path("grouped"), Some("4242:1"), Part::Whole, None)
        .await;
    assert_eq!(read.unwrap().head.size, 1);
    let read = client
        .read_part(&path("grouped"), Some("4242"), Part::Whole, None)
        .await;
    assert_eq!(code_of(read), denied);
    // The agent itself is who it was.
    assert_eq!(
        client
            .replace_file(&path("last"), NewFile::default(), "x")
            .await
            .unwrap()
            .uid,
        0
    );
}

#[tokio::test]
async fn a_folder_goes_down_and_up_as_a_tar_stream() {
    let agent = Agent::start();
    let client = agent.client().await;
    std::fs::create_dir_all(agent.path("from/sub")).unwrap();
    std::fs::write(agent.path("from/sub/run"), "run").unwrap();
    std::fs::set_permissions(agent.path("from/sub/run"), std::fs::Permissions::from_mode(0o751)).unwrap();
    symlink("/somewhere", agent.path("from/link")).unwrap();
    nix::unistd::mkfifo(&agent.path("from/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let stream = client.read_tree(&agent.path_text("from"), None).await.unwrap();
    let stream = stream.collect(MAX).await.unwrap();
    let done = client
        .write_tree(&agent.path_text("to/deep"), None, None, stream)
        .await
        .unwrap();
    // What was left out there is told here.
    assert_eq!((done.files, done.bytes, done.left_out, done.failed), (1, 3, 1, 0));
    assert_eq!(done.named, ["pipe: it is a device, a pipe or a socket"]);
    let run = agent.path("to/deep/sub/run");
    assert_eq!(std::fs::metadata(&run).unwrap().permissions().mode() & 0o7777, 0o751);
    assert_eq!(
        std::fs::read_link(agent.path("to/deep/link")).unwrap().to_str(),
        Some("/somewhere")
    );
    for (path, refusal) in [
        (agent.path_text("none"), (404, FaultCode::NotFound)),
        (run.to_str().unwrap().to_owned(), (409, FaultCode::NotFolder)),
    ] {
        assert_eq!(code_of(client.read_tree(&path, None).await), refusal);
    }
    let up = client
        .write_tree(run.to_str().unwrap(), None, None, vec![0; 1024])
        .await;
    assert_eq!(code_of(up), (409, FaultCode::Exists));
    let up = client
        .write_tree(&agent.path_text("x"), None, None, vec![7; 2000])
        .await;
    assert_eq!(code_of(up), (400, FaultCode::Invalid));
}

#[tokio::test]
#[ignore = "needs root (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn as_root_another_user_packs_and_unpacks_what_that_user_may() {
    let agent = Agent::start();
    let client = agent.client().await;
    std::fs::set_permissions(agent.path(""), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::create_dir(agent.path("from")).unwrap();
    std::fs::write(agent.path("from/open"), "o").unwrap();
    std::fs::write(agent.path("from/secret"), "s").unwrap();
    std::fs::set_permissions(agent.path("from/secret"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let daemon = Some("daemon");
    let stream = client.read_tree(&agent.path_text("from"), daemon).await.unwrap();
    let stream = stream.collect(MAX).await.unwrap();
    let up = client
        .write_tree(&agent.path_text("to"), daemon, None, stream.clone())
        .await;
    assert_eq!(code_of(up), (403, FaultCode::Denied));
    let done = client
        .write_tree(&agent.path_text("to"), None, daemon, stream)
        .await
        .unwrap();
    assert_eq!((done.files, done.failed), (1, 1));
    assert!(done.named[0].starts_with("secret: "), "{:?}", done.named);
    assert_eq!(std::fs::metadata(agent.path("to/open")).unwrap().uid(), 1);
}

/// A reader that goes away ends the packing: an agent does not pack for nobody.
#[tokio::test]
async fn a_tar_stream_that_nobody_reads_any_more_is_packed_no_further() {
    let agent = Agent::start();
    let client = agent.client().await;
    std::fs::create_dir(agent.path("from")).unwrap();
    let large = std::fs::File::create(agent.path("from/sparse")).unwrap();
    large.set_len(1 << 40).unwrap();
    let mut stream = client.read_tree(&agent.path_text("from"), None).await.unwrap();
    futures::StreamExt::next(&mut stream).await.unwrap().unwrap();
    let has_open = || {
        let files = std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap();
        let mut links = files.filter_map(|file| std::fs::read_link(file.unwrap().path()).ok());
        links.any(|link| link.ends_with("from/sparse"))
    };
    assert!(has_open());
    drop(stream);
    eventually("the file is closed", async || (!has_open()).then_some(())).await;
    client.health().await.unwrap();
}
