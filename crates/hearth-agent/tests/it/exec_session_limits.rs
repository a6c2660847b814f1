//! Much output of exec sessions, and many of them: memory is bounded, and who waits for whom.

use std::collections::HashSet;
use std::time::Duration;

use futures::StreamExt;
use hearth_guest::client::SessionEvent;
use hearth_guest::exec_session::{SessionAttach, SessionInfo, Until};
use tokio::time::timeout;

use crate::exec_sessions::*;
use crate::support::*;

#[tokio::test]
async fn a_gibibyte_waits_for_no_reader_and_is_never_held() {
    const GIBIBYTE: u64 = 1 << 30;
    const MOST_KIB: u64 = 64 * 1024;
    let agent = Agent::start();
    let client = agent.client().await;
    let command = format!("head -c {GIBIBYTE} /dev/zero; echo the end");
    let info = start(&client, &spec(shell(&command))).await;
    // One that takes nothing, and one that takes what it gets.
    let slow = reader(&agent.client().await, &attach(&info.id, Until::Ended)).await;
    let quick = agent.client().await;
    let mut quick = reader(&quick, &attach(&info.id, Until::Ended)).await;
    let (mut seen, mut last) = (0, None);
    while let Some(event) = quick.next().await {
        match event.unwrap() {
            SessionEvent::Stdout(bytes) => seen += bytes.len() as u64,
            SessionEvent::Dropped(bytes) => seen += bytes,
            SessionEvent::Stderr(bytes) => panic!("{bytes:?}"),
            SessionEvent::Info(info) => last = Some(info),
        }
    }
    assert_eq!(seen, GIBIBYTE + 8);
    assert_eq!(code(&last.unwrap()), Some(0));
    let slow = read(slow).await;
    assert_eq!(slow.bytes(), GIBIBYTE + 8);
    assert!(slow.dropped > 0 && slow.stdout.ends_with(b"the end\n"));
    let kept = client.session(&info.id).await.unwrap();
    assert_eq!(kept.output_bytes, GIBIBYTE + 8);
    assert!(kept.output_bytes - kept.dropped_bytes > 1 << 20);
    assert!(agent.resident_kib() < MOST_KIB, "{} KiB", agent.resident_kib());
}

#[tokio::test]
async fn a_reader_that_is_waited_for_gets_every_byte_and_holds_nobody_when_it_goes() {
    const BYTES: usize = 50_000_000;
    let agent = Agent::start();
    let client = agent.client().await;
    let command = format!("head -c {BYTES} /dev/zero | tr '\\0' 'x'; echo the end");
    let mut wanted = spec(shell(&command));
    wanted.tag = Some("all".into());
    let go = agent.path_text("go");
    wanted.command.shell = Some(format!("until [ -e {go} ]; do sleep 0.01; done; {command}"));
    start(&client, &wanted).await;
    let lossless = SessionAttach {
        lossless: true,
        ..attach("all", Until::Ended)
    };
    let slow = agent.client().await;
    let mut slow = reader(&slow, &lossless).await;
    assert!(matches!(slow.next().await, Some(Ok(SessionEvent::Info(_)))));
    let gone = reader(&agent.client().await, &lossless).await;
    std::fs::write(&go, "").unwrap();
    // It is held: what nobody has taken is no more than the pipes and windows on the way.
    eventually("it prints", async || {
        (client.session("all").await.unwrap().output_bytes > 1000).then_some(())
    })
    .await;
    assert!(
        client
            .wait_session("all", Duration::from_millis(500))
            .await
            .unwrap()
            .runs()
    );
    assert!(client.session("all").await.unwrap().output_bytes < 10_000_000);
    drop(gone);
    let mut bytes = 0;
    let mut last = None;
    while let Some(event) = timeout(DEADLINE, slow.next()).await.expect("output comes") {
        match event.unwrap() {
            SessionEvent::Stdout(output) => bytes += output.len(),
            SessionEvent::Info(info) => last = Some(info),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((bytes, code(&last.unwrap())), (BYTES + 8, Some(0)));
    // One that goes lets it run on.
    let endless = start(&client, &spec(argv(&["yes"]))).await;
    let lossless = SessionAttach {
        lossless: true,
        ..attach(&endless.id, Until::Ended)
    };
    let other = agent.client().await;
    let held = reader(&other, &lossless).await;
    drop((held, other));
    eventually("it prints much", async || {
        (client.session(&endless.id).await.unwrap().output_bytes > 20_000_000).then_some(())
    })
    .await;
}

#[tokio::test]
async fn many_noisy_sessions_share_a_bound() {
    const MOST_KIB: u64 = 96 * 1024;
    let agent = Agent::start();
    let client = agent.client().await;
    for number in 0..20 {
        let info = start(&client, &spec(shell("head -c 4000000 /dev/zero; echo; echo mine"))).await;
        if number % 2 == 0 {
            ended(&client, &info.id).await;
        }
    }
    for info in client.sessions().await.unwrap() {
        let info = ended(&client, &info.id).await;
        assert_eq!(info.output_bytes, 4_000_006);
    }
    let all = client.sessions().await.unwrap();
    let kept: u64 = all.iter().map(|info| info.output_bytes - info.dropped_bytes).sum();
    assert!((8 << 20..=32 << 20).contains(&kept), "{kept}");
    // The newest was not the one that gave way.
    let newest = read(reader(&client, &attach(&all[19].id, Until::Now)).await).await;
    assert!(newest.stdout.ends_with(b"mine\n"));
    assert!(agent.resident_kib() < MOST_KIB, "{} KiB", agent.resident_kib());
}

#[tokio::test]
async fn a_hundred_sessions_at_once() {
    let agent = Agent::start();
    let client = agent.client().await;
    let sessions = (0..100).map(|number| {
        let client = client.clone();
        async move {
            let mut wanted = spec(shell(&format!("read x; echo $x-{number}; exit {}", number % 50)));
            (wanted.stdin, wanted.tag) = (true, Some(format!("no {number}")));
            start(&client, &wanted).await
        }
    });
    let sessions = futures::future::join_all(sessions).await;
    let ids: HashSet<_> = sessions.iter().map(|info| &info.id).collect();
    assert_eq!(ids.len(), 100);
    assert!(client.sessions().await.unwrap().iter().all(SessionInfo::runs));
    for (number, info) in sessions.iter().enumerate() {
        let tag = format!("no {number}");
        client.write_stdin(&tag, format!("in{number}\n"), false).await.unwrap();
        let got = read(reader(&client, &attach(&tag, Until::Ended)).await).await;
        assert_eq!(got.text(), format!("in{number}-{number}\n"));
        let last = got.last.unwrap();
        assert_eq!(
            (&last.id, code(&last)),
            (&info.id, Some(i32::try_from(number % 50).unwrap()))
        );
    }
    // Of those that have ended, only some are kept.
    assert!(client.sessions().await.unwrap().len() <= 64);
}
