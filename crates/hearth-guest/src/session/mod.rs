//! One HTTP/2 connection after another over a byte stream that never really opens or closes.
//!
//! A virtio-serial port is *one* stream for the whole life of a VM. When the host's process is replaced, the guest may
//! see an end of file, or miss it and find the new host's bytes in the middle of a frame of the old one; the host may
//! find what an old session left in the pipe. So there is a thin layer below HTTP/2, see [`codec`]: the host opens a
//! session with a random id, the guest drops whatever it was doing and accepts with the same id, and both have a clean
//! stream from there on.
//!
//! - [`open`] is the host's end, [`serve_sessions`] the guest's; both give a [`SessionStream`].
//! - It is not a multiplexer (HTTP/2 does that) and checks no integrity: within one host's connection, QEMU loses nothing.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, MissedTickBehavior};
use uuid::Uuid;

pub mod codec;
mod pump;
mod stream;

pub use codec::SessionId;
pub use stream::SessionStream;

use codec::{Decoder, Event};
use pump::Pump;

/// Pause between two attempts of the host to open a session. The guest's kernel and QEMU normally keep the first
/// attempt until the agent reads it; the others are for what was lost on the way (an agent that was restarted).
const OPEN_INTERVAL: Duration = Duration::from_millis(150);

/// The most that is kept for a session on the host that does not read. The host simply stops reading the port then.
const HOST_INBOUND_LIMIT: usize = 1024 * 1024;

/// The most that is kept for a session in the guest that does not read. It is larger than what [`CONNECTION_WINDOW`]
/// lets an honest host have in flight; a host that sends more loses its session. The guest cannot just stop reading: it
/// would not see the next host.
const GUEST_INBOUND_LIMIT: usize = CONNECTION_WINDOW as usize + 2 * 1024 * 1024;

/// HTTP/2 flow control for one request or reply, both ways. Small enough that a command whose output nobody reads is
/// held back early, large enough for fast uploads over a stream with a round trip of a few milliseconds.
pub const STREAM_WINDOW: u32 = 512 * 1024;

/// HTTP/2 flow control for a whole connection: sixty-four stuck streams do not stop the others.
pub const CONNECTION_WINDOW: u32 = 64 * STREAM_WINDOW;

/// Opens a session from the host's side: asks until the agent answers or `deadline` has passed.
///
/// May be called before the agent (or the guest's kernel) is up. Must be called inside a Tokio runtime: a task carries
/// the bytes until the session's stream is dropped or the transport ends.
pub async fn open<S>(stream: S, deadline: Instant) -> io::Result<SessionStream>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let id = SessionId(*Uuid::new_v4().as_bytes());
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut decoder = Decoder::host(id);
    let mut tick = tokio::time::interval(OPEN_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut buffer = vec![0; pump::READ_BYTES];
    let mut out: Vec<u8> = Vec::new();
    let mut written = 0;
    let mut wanted = false;
    loop {
        // Never more than one attempt waits in our own buffer: a guest that is not up yet takes nothing.
        if wanted && written == out.len() {
            out.clear();
            written = 0;
            codec::put_opening(&mut out, id);
            wanted = false;
        }
        tokio::select! {
            () = tokio::time::sleep_until(deadline) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the agent did not answer in time"));
            }
            _ = tick.tick(), if !wanted => wanted = true,
            read = reader.read(&mut buffer) => {
                let read = read?;
                if read == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                decoder.feed(&buffer[..read]);
                if matches!(decoder.next_event(), Some(Event::Accepted)) {
                    break;
                }
            }
            sent = writer.write(&out[written..]), if written < out.len() => {
                let sent = sent?;
                if sent == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                written += sent;
            }
        }
    }
    let (session, pump_end) = stream::pair(HOST_INBOUND_LIMIT);
    // What is left of a repeated attempt must still go out whole: it is read before any data.
    let rest = out.split_off(written);
    tokio::spawn(async move {
        let mut pump = Pump::new(reader, writer, decoder, rest);
        pump.attach(id, pump_end);
        pump.run_host().await;
    });
    Ok(session)
}

/// Serves one session after the other from the guest's side, until the transport breaks.
///
/// `handler` gets each session's stream. Its future is dropped as soon as another session opens, the transport ends or
/// the host closes the session: everything that must not outlive the session has to hang on that future.
///
/// `at_end` is asked at every end of file. It says whether the transport continues, after waiting until it does: a
/// virtio-serial port does with the next host, a socket never. The two are one stream to this function, because a new
/// host's first bytes may be read before the end of file that was the old host's.
pub async fn serve_sessions<R, W, H, F>(
    reader: R,
    writer: W,
    handler: H,
    at_end: impl AsyncFnMut() -> io::Result<bool>,
) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    H: FnMut(SessionStream) -> F,
    F: Future<Output = ()>,
{
    let mut first = Vec::new();
    // An agent that starts anew under a host that believes in a running session: say that there is none.
    codec::put_padding(&mut first);
    codec::put_close(&mut first, SessionId::NONE);
    let mut pump = Pump::new(reader, writer, Decoder::guest(), first);
    pump.run_guest(handler, at_end, GUEST_INBOUND_LIMIT).await
}

#[cfg(test)]
mod tests;
