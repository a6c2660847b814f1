//! Changes as they happen: what is said of each, in folders that come and go, and what happens when there are too many.

use std::fs;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use hearth_guest::client::{AgentError, NewFile};
use hearth_guest::files::{Change, ChangeKind, FaultCode};

use crate::support::*;

type Changes = BoxStream<'static, Result<Change, AgentError>>;

async fn next(changes: &mut Changes) -> Change {
    let change = tokio::time::timeout(DEADLINE, changes.next())
        .await
        .expect("nothing was said");
    change.unwrap().unwrap()
}

/// The next change that is not the same as one of before, which may be said again.
async fn kind_and_path(changes: &mut Changes) -> (ChangeKind, String) {
    let change = next(changes).await;
    (change.kind, change.path)
}

/// Waits until this is said; what is said before does not matter.
async fn until(changes: &mut Changes, kind: ChangeKind, path: &str) -> Change {
    loop {
        let change = next(changes).await;
        if change.kind == kind && change.path == path {
            return change;
        }
    }
}

#[tokio::test]
async fn files_are_made_written_renamed_and_removed() {
    let agent = Agent::start();
    let client = agent.client().await;
    let folder = agent.path("top");
    fs::create_dir_all(folder.join("sub")).unwrap();
    let mut changes = client.watch_files(folder.to_str().unwrap(), None, true).await.unwrap();
    assert_eq!(kind_and_path(&mut changes).await, (ChangeKind::Started, String::new()));
    fs::write(folder.join("sub/one"), "x").unwrap();
    assert_eq!(
        kind_and_path(&mut changes).await,
        (ChangeKind::Created, "sub/one".into())
    );
    assert_eq!(
        kind_and_path(&mut changes).await,
        (ChangeKind::Written, "sub/one".into())
    );
    fs::rename(folder.join("sub/one"), folder.join("two\nlines")).unwrap();
    let change = next(&mut changes).await;
    assert_eq!(
        (change.kind, change.path.as_str(), change.from.as_deref()),
        (ChangeKind::Renamed, "two\nlines", Some("sub/one"))
    );
    // Out of what is watched, and into it.
    fs::rename(folder.join("two\nlines"), agent.path("outside")).unwrap();
    assert_eq!(
        kind_and_path(&mut changes).await,
        (ChangeKind::Removed, "two\nlines".into())
    );
    fs::rename(agent.path("outside"), folder.join("back")).unwrap();
    assert_eq!(kind_and_path(&mut changes).await, (ChangeKind::Created, "back".into()));
    fs::set_permissions(folder.join("back"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(
        kind_and_path(&mut changes).await,
        (ChangeKind::Attributes, "back".into())
    );
    fs::remove_file(folder.join("back")).unwrap();
    until(&mut changes, ChangeKind::Removed, "back").await;
}

/// A file that is written whole is said to be made, or written; not that it was something else before.
#[tokio::test]
async fn files_written_by_this_agent_are_said_once_they_are_there() {
    let agent = Agent::start();
    let client = agent.client().await;
    let folder = agent.path("top");
    fs::create_dir_all(&folder).unwrap();
    let mut changes = client.watch_files(folder.to_str().unwrap(), None, true).await.unwrap();
    assert_eq!(kind_and_path(&mut changes).await, (ChangeKind::Started, String::new()));
    let file = agent.path_text("top/file");
    for text in ["one", "two"] {
        client.replace_file(&file, NewFile::default(), text).await.unwrap();
    }
    fs::create_dir(agent.path("from")).unwrap();
    fs::write(agent.path("from/file"), "three").unwrap();
    fs::write(agent.path("from/other"), "x").unwrap();
    let stream = client.read_tree(&agent.path_text("from"), None).await.unwrap();
    let stream = stream.collect(1 << 20).await.unwrap();
    client
        .write_tree(folder.to_str().unwrap(), None, None, stream)
        .await
        .unwrap();
    fs::write(folder.join("end"), "").unwrap();
    let mut said = Vec::new();
    loop {
        let (kind, path) = kind_and_path(&mut changes).await;
        if path == "end" {
            break;
        }
        said.push((kind, path));
    }
    said.retain(|(kind, path)| *kind != ChangeKind::Attributes && !path.is_empty());
    said.dedup();
    let expected = [
        (ChangeKind::Created, "file"),
        (ChangeKind::Written, "file"),
        (ChangeKind::Created, "other"),
        (ChangeKind::Written, "other"),
    ];
    assert_eq!(said, expected.map(|(kind, path)| (kind, path.to_owned())));
}

#[tokio::test]
async fn folders_that_come_are_watched_and_keep_being_when_they_are_renamed() {
    let agent = Agent::start();
    let client = agent.client().await;
    let folder = agent.path("top");
    fs::create_dir(&folder).unwrap();
    let mut changes = client.watch_files(folder.to_str().unwrap(), None, true).await.unwrap();
    next(&mut changes).await;
    fs::create_dir_all(folder.join("a/b/c")).unwrap();
    assert!(until(&mut changes, ChangeKind::Created, "a/b/c").await.is_folder);
    fs::write(folder.join("a/b/c/file"), "x").unwrap();
    until(&mut changes, ChangeKind::Written, "a/b/c/file").await;
    fs::rename(folder.join("a"), folder.join("z")).unwrap();
    assert_eq!(
        until(&mut changes, ChangeKind::Renamed, "z").await.from.as_deref(),
        Some("a")
    );
    fs::write(folder.join("z/b/c/file"), "y").unwrap();
    until(&mut changes, ChangeKind::Written, "z/b/c/file").await;
    // What was moved away is not watched any more.
    fs::rename(folder.join("z/b"), agent.path("b")).unwrap();
    until(&mut changes, ChangeKind::Removed, "z/b").await;
    fs::write(agent.path("b/c/file"), "unseen").unwrap();
    fs::write(folder.join("last"), "").unwrap();
    assert_eq!(kind_and_path(&mut changes).await, (ChangeKind::Created, "last".into()));
    fs::remove_dir_all(&folder).unwrap();
    until(&mut changes, ChangeKind::Removed, "").await;
    assert_eq!(kind_and_path(&mut changes).await, (ChangeKind::Ended, String::new()));
    assert!(changes.next().await.is_none());
}

#[tokio::test]
async fn only_the_folder_itself_is_watched_when_no_more_is_asked_for() {
    let agent = Agent::start();
    let client = agent.client().await;
    fs::create_dir_all(agent.path("top/sub")).unwrap();
    let mut changes = client.watch_files(&agent.path_text("top"), None, false).await.unwrap();
    next(&mut changes).await;
    fs::write(agent.path("top/sub/unseen"), "x").unwrap();
    fs::write(agent.path("top/seen"), "").unwrap();
    until(&mut changes, ChangeKind::Created, "seen").await;
    // A file can be watched as well.
    let mut changes = client
        .watch_files(&agent.path_text("top/seen"), None, true)
        .await
        .unwrap();
    next(&mut changes).await;
    fs::write(agent.path("top/seen"), "new").unwrap();
    assert_eq!(kind_and_path(&mut changes).await, (ChangeKind::Written, String::new()));
}

#[tokio::test]
async fn more_changes_than_anybody_takes_are_an_overflow_and_watching_goes_on() {
    let agent = Agent::start();
    let client = agent.client().await;
    let folder = agent.path("top");
    fs::create_dir(&folder).unwrap();
    let mut changes = client.watch_files(folder.to_str().unwrap(), None, true).await.unwrap();
    next(&mut changes).await;
    let kept: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    // Nobody reads meanwhile. Long names fill what waits on the way.
    let name = "n".repeat(200);
    for number in 0..kept + 8000 {
        let path = folder.join(format!("{name}{number}"));
        fs::write(&path, "").unwrap();
        fs::remove_file(&path).unwrap();
    }
    until(&mut changes, ChangeKind::Overflow, "").await;
    fs::write(folder.join("after"), "").unwrap();
    until(&mut changes, ChangeKind::Created, "after").await;
}

#[tokio::test]
async fn what_cannot_be_watched_is_said_and_a_watcher_ends_with_its_reader() {
    let agent = Agent::start();
    let client = agent.client().await;
    let refused = async |path: &str| match client.watch_files(path, None, true).await {
        Err(AgentError::Refused { status, code, message }) => (status, code, message),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it is watched"),
    };
    let (status, code, message) = refused("/no/such/folder").await;
    assert_eq!((status, code), (404, Some(FaultCode::NotFound)));
    assert_eq!(message, "/no/such/folder does not exist");
    let mut all = Vec::new();
    let last = loop {
        match client.watch_files(&agent.path_text(""), None, false).await {
            Ok(changes) => all.push(changes),
            Err(error) => break error,
        }
    };
    assert!(all.len() <= 64, "{}", all.len());
    assert!(matches!(last, AgentError::Refused { status: 409, .. }), "{last}");
    drop(all);
    let _changes = eventually("there is room again", async || {
        client.watch_files(&agent.path_text(""), None, false).await.ok()
    })
    .await;
}
