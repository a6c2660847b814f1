//! Sessions over arbitrary garbage and cuts, and in the middle of each other.

use super::codec::*;
use super::*;
use bytes::Bytes;
use proptest::prelude::*;
use tokio::io::{DuplexStream, duplex};

fn id(seed: u8) -> SessionId {
    SessionId([seed.max(1); 16])
}

/// A plausible stream of an old session: its beginning and some data, both possibly cut.
fn old_session(kind_open: bool) -> impl Strategy<Value = Vec<u8>> {
    (
        any::<u8>(),
        prop::collection::vec(prop::collection::vec(any::<u8>(), 1..3000), 0..4),
        any::<prop::sample::Index>(),
    )
        .prop_map(move |(seed, chunks, cut)| {
            let mut bytes = Vec::new();
            if kind_open {
                put_opening(&mut bytes, id(seed));
            } else {
                put_accept(&mut bytes, id(seed));
            }
            for chunk in chunks {
                put_data(&mut bytes, &chunk);
            }
            bytes.truncate(cut.index(bytes.len() + 1));
            bytes
        })
}

/// Garbage that looks like frames more often than chance would have it.
fn garbage() -> impl Strategy<Value = Vec<u8>> {
    let frame_like = (0u8..6, any::<u16>()).prop_map(|(kind, length)| {
        let [high, low] = length.to_be_bytes();
        vec![kind, high, low]
    });
    let chunk = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        frame_like,
        old_session(true),
        old_session(false)
    ];
    prop::collection::vec(chunk, 0..6).prop_map(|chunks| chunks.concat())
}

fn feed_in_chunks(decoder: &mut Decoder, bytes: &[u8], cuts: &[prop::sample::Index]) -> Vec<Event> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    at.push(bytes.len());
    at.sort_unstable();
    let mut events = Vec::new();
    let mut start = 0;
    for end in at {
        decoder.feed(&bytes[start..end]);
        while let Some(event) = decoder.next_event() {
            events.push(event);
        }
        start = end;
    }
    events
}

fn data_after(events: &[Event], beginning: &Event) -> Option<Vec<u8>> {
    let start = events.iter().rposition(|event| event == beginning)?;
    let mut data = Vec::new();
    for event in &events[start + 1..] {
        match event {
            Event::Data(chunk) => data.extend_from_slice(chunk),
            _ => return None,
        }
    }
    Some(data)
}

proptest! {
    #[test]
    fn the_guest_finds_the_last_session(before in garbage(), payload in prop::collection::vec(any::<u8>(), 0..40_000),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8)) {
        let ours = SessionId(*b"the new session!");
        let mut bytes = before;
        put_opening(&mut bytes, ours);
        for chunk in payload.chunks(MAX_PAYLOAD) {
            put_data(&mut bytes, chunk);
        }
        let events = feed_in_chunks(&mut Decoder::guest(), &bytes, &cuts);
        prop_assert_eq!(data_after(&events, &Event::Opened(ours)), Some(payload));
    }

    #[test]
    fn the_host_discards_everything_before_its_answer(before in garbage(),
        payload in prop::collection::vec(any::<u8>(), 0..40_000), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8)) {
        let ours = SessionId(*b"the new session!");
        let mut bytes = before;
        put_accept(&mut bytes, ours);
        for chunk in payload.chunks(MAX_PAYLOAD) {
            put_data(&mut bytes, chunk);
        }
        let events = feed_in_chunks(&mut Decoder::host(ours), &bytes, &cuts);
        prop_assert_eq!(events.first(), Some(&Event::Accepted));
        prop_assert_eq!(data_after(&events, &Event::Accepted), Some(payload));
    }
}

/// A guest that echoes every session, on a transport like a virtio-serial port: hosts come and go, the port stays.
fn echo_guest(port: DuplexStream) -> tokio::task::JoinHandle<io::Result<()>> {
    let (reader, writer) = tokio::io::split(port);
    let echo = |session| async move {
        let (mut reader, mut writer) = tokio::io::split(session);
        drop(tokio::io::copy(&mut reader, &mut writer).await);
    };
    tokio::spawn(serve_sessions(reader, writer, echo, async || Ok(false)))
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

async fn echo(session: &mut SessionStream, text: &[u8]) {
    session.write_all(text).await.unwrap();
    let mut back = vec![0; text.len()];
    session.read_exact(&mut back).await.unwrap();
    assert_eq!(back, text);
}

#[tokio::test]
async fn a_session_carries_both_ways() {
    let (host, guest) = duplex(4096);
    let guest = echo_guest(guest);
    let mut session = open(host, soon()).await.unwrap();
    echo(&mut session, b"hello").await;
    let big: Vec<u8> = (0..300_000u32).map(|n| n.to_le_bytes()[0]).collect();
    let (mut reader, mut writer) = tokio::io::split(session);
    let expected = big.clone();
    let sender = tokio::spawn(async move {
        writer.write_all(&big).await.unwrap();
        writer
    });
    let mut back = vec![0; expected.len()];
    reader.read_exact(&mut back).await.unwrap();
    assert_eq!(back, expected);
    drop((reader, sender.await.unwrap()));
    // Dropping the session closes the transport, and that ends the guest's loop.
    guest.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_host_may_come_before_the_guest() {
    let (host, guest) = duplex(1024);
    let opening = tokio::spawn(open(host, soon()));
    tokio::time::sleep(OPEN_INTERVAL * 3).await;
    let _guest = echo_guest(guest);
    let mut session = opening.await.unwrap().unwrap();
    echo(&mut session, b"late").await;
}

#[tokio::test]
async fn without_an_agent_it_gives_up_at_the_deadline() {
    let (host, _guest) = duplex(1024);
    let error = open(host, Instant::now() + Duration::from_millis(50))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}

/// The transport stays, one host after the other speaks on it and is cut off in the middle of whatever it was saying.
#[tokio::test]
async fn a_new_host_interrupts_the_old_one_anywhere() {
    let (mut port, guest) = duplex(256 * 1024);
    let _guest = echo_guest(guest);
    let mut frame = Vec::new();
    put_data(&mut frame, &[7; 500]);
    for round in 0..60u8 {
        let ours = id(round + 1);
        let mut bytes = Vec::new();
        put_opening(&mut bytes, ours);
        put_data(&mut bytes, b"ping");
        // The next host begins while this one is in the middle of a frame.
        bytes.extend_from_slice(&frame[..usize::from(round) * 8]);
        port.write_all(&bytes).await.unwrap();
        let mut decoder = Decoder::host(ours);
        let mut events = Vec::new();
        while !events.contains(&Event::Data(Bytes::from_static(b"ping"))) {
            let mut buffer = [0; 4096];
            let read = tokio::time::timeout(Duration::from_secs(10), port.read(&mut buffer))
                .await
                .unwrap()
                .unwrap();
            decoder.feed(&buffer[..read]);
            while let Some(event) = decoder.next_event() {
                events.push(event);
            }
        }
        assert_eq!(events.first(), Some(&Event::Accepted));
    }
}

#[tokio::test]
async fn an_agent_that_starts_anew_ends_the_hosts_session() {
    let (host, mut port) = duplex(64 * 1024);
    let opening = tokio::spawn(open(host, soon()));
    let mut decoder = Decoder::guest();
    let ours = loop {
        let mut buffer = [0; 4096];
        let read = port.read(&mut buffer).await.unwrap();
        decoder.feed(&buffer[..read]);
        if let Some(Event::Opened(id)) = decoder.next_event() {
            break id;
        }
    };
    let mut answer = Vec::new();
    put_accept(&mut answer, ours);
    // The old agent dies in the middle of a frame.
    answer.extend_from_slice(&[3, 0x40, 0]);
    port.write_all(&answer).await.unwrap();
    let mut session = opening.await.unwrap().unwrap();
    let _guest = echo_guest(port);
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), session.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
}

/// Gives one chunk at a time; an empty one is an end of file.
struct Chunks(std::collections::VecDeque<Vec<u8>>);

impl AsyncRead for Chunks {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        match self.0.pop_front() {
            Some(chunk) => {
                buffer.put_slice(&chunk);
                std::task::Poll::Ready(Ok(()))
            }
            None => std::task::Poll::Pending,
        }
    }
}

#[tokio::test]
async fn the_old_hosts_end_of_file_may_come_after_the_new_hosts_first_bytes() {
    let (mut host, port) = duplex(256 * 1024);
    let frames = |build: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = Vec::new();
        build(&mut bytes);
        bytes
    };
    let opening = frames(&|bytes| {
        bytes.push(0);
        put_opening(bytes, id(9));
    });
    let ping = frames(&|bytes| {
        put_data(bytes, b"ping");
    });
    let mut chunks: std::collections::VecDeque<_> = opening.chunks(8192).map(<[u8]>::to_vec).collect();
    chunks.extend([Vec::new(), ping]);
    let echo = |session| async move {
        let (mut reader, mut writer) = tokio::io::split(session);
        drop(tokio::io::copy(&mut reader, &mut writer).await);
    };
    let _guest = tokio::spawn(serve_sessions(Chunks(chunks), port, echo, async || Ok(true)));
    let mut decoder = Decoder::host(id(9));
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = tokio::time::timeout(Duration::from_secs(10), host.read(&mut buffer))
            .await
            .unwrap()
            .unwrap();
        decoder.feed(&buffer[..read]);
        while let Some(event) = decoder.next_event() {
            if event == Event::Data(Bytes::from_static(b"ping")) {
                return;
            }
        }
    }
}
