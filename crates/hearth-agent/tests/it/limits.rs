//! Much of everything: streams far larger than memory should be, slow readers, many commands at once.

use futures::StreamExt;
use hearth_guest::ExecEnd;
use hearth_guest::client::{Download, ExecEvent, NewFile, Upload};
use hearth_guest::files::Part;

use crate::support::*;

/// The agent may have had this much in memory at any time; unoptimized, with a hundred commands at once.
const MOST_KIB: u64 = 64 * 1024;

const MIB: usize = 1 << 20;

fn chunks(mebibytes: usize) -> Upload {
    let chunk = bytes::Bytes::from(vec![7; MIB]);
    Upload::from_stream(futures::stream::iter((0..mebibytes).map(move |_| Ok(chunk.clone()))))
}

#[tokio::test]
async fn large_streams_are_never_held() {
    const MEBIBYTES: usize = 300;
    let agent = Agent::start();
    let client = agent.client().await;
    client
        .write_file("/dev/shm/hearth-agent-test", 0o600, chunks(MEBIBYTES))
        .await
        .unwrap();
    let mut download = client.read_file("/dev/shm/hearth-agent-test").await.unwrap();
    let mut length = 0;
    while let Some(chunk) = download.next().await {
        length += chunk.unwrap().len();
    }
    std::fs::remove_file("/dev/shm/hearth-agent-test").unwrap();
    assert_eq!(length, MEBIBYTES * MIB);
    let output = client
        .exec(&shell("wc -c"), chunks(MEBIBYTES))
        .await
        .unwrap()
        .collect(MIB)
        .await
        .unwrap();
    assert_eq!(output.stdout, format!("{}\n", MEBIBYTES * MIB).as_bytes());
    let command = format!("head -c {} /dev/zero", MEBIBYTES * MIB);
    let output = client.exec_collect(&shell(&command), MIB).await.unwrap();
    assert!(output.truncated && matches!(output.end, ExecEnd::Exited { code: Some(0), .. }));
    assert!(agent.resident_kib() < MOST_KIB, "{} KiB", agent.resident_kib());
}

#[tokio::test]
async fn a_file_of_a_gibibyte_and_its_folder_are_never_held() {
    const GIBIBYTE: u64 = 1 << 30;
    let agent = Agent::start();
    let client = agent.client().await;
    std::fs::create_dir(agent.path("from")).unwrap();
    let sparse = std::fs::File::create(agent.path("from/sparse")).unwrap();
    sparse.set_len(GIBIBYTE).unwrap();
    let count = async |mut body: Download| {
        let mut length = 0;
        while let Some(chunk) = body.next().await {
            length += chunk.unwrap().len() as u64;
        }
        length
    };
    let path = agent.path_text("from/sparse");
    let file = client.read_part(&path, None, Part::Whole, None).await.unwrap();
    assert_eq!((file.head.length, count(file.body).await), (GIBIBYTE, GIBIBYTE));
    let tree = client.read_tree(&agent.path_text("from"), None).await.unwrap();
    assert!(count(tree).await > GIBIBYTE);
    let path = "/dev/shm/hearth-agent-file";
    let written = client.replace_file(path, NewFile::default(), chunks(300)).await;
    std::fs::remove_file(path).unwrap();
    assert_eq!(written.unwrap().size, 300 << 20);
    assert!(agent.resident_kib() < MOST_KIB, "{} KiB", agent.resident_kib());
}

#[tokio::test]
async fn slow_readers_hold_back_their_commands_only() {
    let agent = Agent::start();
    let client = agent.client().await;
    let mut slow = Vec::new();
    for _ in 0..20 {
        slow.push(client.exec(&argv(&["yes"]), Upload::empty()).await.unwrap());
    }
    for stream in &mut slow {
        assert!(matches!(stream.next().await, Some(Ok(ExecEvent::Stdout(_)))));
    }
    for _ in 0..20 {
        let output = client.exec_collect(&shell("echo quick"), MIB).await.unwrap();
        assert_eq!(output.stdout, b"quick\n");
    }
    assert!(agent.resident_kib() < MOST_KIB, "{} KiB", agent.resident_kib());
    drop(slow);
    client.health().await.unwrap();
}

#[tokio::test]
async fn a_hundred_commands_at_once() {
    let agent = Agent::start();
    let client = agent.client().await;
    let commands = (0..100).map(|number| {
        let client = client.clone();
        async move {
            let spec = shell(&format!(
                "read x; echo $x-{number}; echo e{number} >&2; exit {}",
                number % 50
            ));
            let output = client
                .exec(&spec, format!("in{number}\n"))
                .await
                .unwrap()
                .collect(MIB)
                .await
                .unwrap();
            assert_eq!(output.stdout, format!("in{number}-{number}\n").as_bytes());
            assert_eq!(output.stderr, format!("e{number}\n").as_bytes());
            assert!(matches!(output.end, ExecEnd::Exited { code: Some(code), .. } if code == number % 50));
        }
    });
    futures::future::join_all(commands).await;
    // And a hundred that are dropped at once: many resets are no attack.
    let dropped = futures::future::join_all(
        (0..100).map(|_| async { client.exec(&shell("sleep 1000"), Upload::empty()).await.unwrap() }),
    );
    drop(dropped.await);
    client.health().await.unwrap();
    eventually("no child is left that had a command, not even a zombie", async || {
        let (children, pre_started) = (agent.children(), agent.pre_started());
        (children.len() <= 3 && children == pre_started).then_some(())
    })
    .await;
}
