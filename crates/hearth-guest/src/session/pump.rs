//! Carries bytes between a transport and the session that runs on it. One loop for each end; the frames are [`codec`]'s.
//!
//! Neither loop ever waits for only one direction: a guest whose host is gone can write nothing, and must still notice
//! the next host.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::codec::{self, Decoder, Event, MAX_PAYLOAD, SessionId};
use super::stream::{self, PumpEnd, SessionStream};

/// How much is read from the transport at once. A virtio-serial port gives 4 KiB at a time, a socket more.
pub(super) const READ_BYTES: usize = 32 * 1024;

/// Answers to a host that asks and asks but reads nothing are not piled up beyond this.
const ANSWERS_LIMIT: usize = 64 * 1024;

/// How long the host tries to tell the agent that a session is over. Without that word the agent finds out anyway.
const GOODBYE_TIME: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Attached {
    id: SessionId,
    end: PumpEnd,
    /// No data of it has come in yet: another OPEN with its id is only a repetition.
    fresh: bool,
}

#[derive(Debug)]
pub(super) struct Pump<R, W> {
    reader: R,
    writer: W,
    decoder: Decoder,
    /// Frames on their way out, sent up to `written`.
    out: Vec<u8>,
    written: usize,
    attached: Option<Attached>,
}

impl<R, W> Pump<R, W>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    pub(super) fn new(reader: R, writer: W, decoder: Decoder, out: Vec<u8>) -> Self {
        Self {
            reader,
            writer,
            decoder,
            out,
            written: 0,
            attached: None,
        }
    }

    pub(super) fn attach(&mut self, id: SessionId, end: PumpEnd) {
        self.attached = Some(Attached { id, end, fresh: true });
    }

    /// The guest's loop. The handler's future lives inside of it, so that a session's end is one drop.
    pub(super) async fn run_guest<H, F>(
        &mut self,
        mut handler: H,
        mut at_end: impl AsyncFnMut() -> io::Result<bool>,
        inbound_limit: usize,
    ) -> io::Result<()>
    where
        H: FnMut(SessionStream) -> F,
        F: Future<Output = ()>,
    {
        let mut running: Option<Pin<Box<F>>> = None;
        let mut incoming = vec![0; READ_BYTES];
        let mut outgoing = vec![0; MAX_PAYLOAD];
        loop {
            while let Some(event) = self.decoder.next_event() {
                match event {
                    Event::Opened(id) => {
                        let repeated = self
                            .attached
                            .as_ref()
                            .is_some_and(|session| session.id == id && session.fresh);
                        if !repeated {
                            // The old session's end comes before the new one's beginning.
                            drop(running.take());
                            let (session, end) = stream::pair(inbound_limit);
                            self.attach(id, end);
                            running = Some(Box::pin(handler(session)));
                        }
                        if self.out.len() < ANSWERS_LIMIT {
                            codec::put_accept(&mut self.out, id);
                        }
                    }
                    Event::Data(data) => {
                        if let Some(session) = &mut self.attached {
                            session.fresh = false;
                            session.end.inbound.deliver(data);
                            if session.end.inbound.is_full() {
                                codec::put_close(&mut self.out, session.id);
                                self.attached = None;
                                running = None;
                            }
                        }
                    }
                    Event::Closed(id) => {
                        if self
                            .attached
                            .as_ref()
                            .is_some_and(|session| session.id == id || id == SessionId::NONE)
                        {
                            self.attached = None;
                            running = None;
                        }
                    }
                    Event::Garbled => {
                        if self.attached.take().is_some() {
                            running = None;
                            codec::put_close(&mut self.out, SessionId::NONE);
                        }
                    }
                    Event::Accepted => {}
                }
            }
            let idle = self.out.is_empty();
            tokio::select! {
                read = self.reader.read(&mut incoming) => {
                    let read = read?;
                    self.decoder.feed(&incoming[..read]);
                    if read == 0 {
                        // A session without data may already be the next host's: its bytes overtake the news of it.
                        if !self.attached.as_ref().is_some_and(|session| session.fresh) {
                            running = None;
                            self.attached = None;
                        }
                        if !at_end().await? {
                            return Ok(());
                        }
                    }
                }
                sent = self.writer.write(&self.out[self.written..]), if !idle => {
                    note_sent(sent, &mut self.out, &mut self.written)?;
                }
                read = read_session(&mut self.attached, &mut outgoing), if idle && self.attached.is_some() => {
                    if read == 0 {
                        self.end_session();
                        running = None;
                    } else {
                        codec::put_data(&mut self.out, &outgoing[..read]);
                    }
                }
                () = finish(&mut running), if running.is_some() => running = None,
            }
        }
    }

    /// The host's loop: one session, already accepted.
    pub(super) async fn run_host(mut self) {
        let mut incoming = vec![0; READ_BYTES];
        let mut outgoing = vec![0; MAX_PAYLOAD];
        loop {
            while let Some(event) = self.decoder.next_event() {
                match (event, &self.attached) {
                    (Event::Data(data), Some(session)) => session.end.inbound.deliver(data),
                    (Event::Closed(id), Some(session)) if id != session.id && id != SessionId::NONE => {}
                    (Event::Closed(_) | Event::Garbled, _) => return,
                    (Event::Data(_) | Event::Opened(_) | Event::Accepted, _) => {}
                }
            }
            let idle = self.out.is_empty();
            let full = self
                .attached
                .as_ref()
                .is_some_and(|session| session.end.inbound.is_full());
            tokio::select! {
                read = self.reader.read(&mut incoming), if !full => match read {
                    Ok(0) | Err(_) => return,
                    Ok(read) => self.decoder.feed(&incoming[..read]),
                },
                sent = self.writer.write(&self.out[self.written..]), if !idle => {
                    if note_sent(sent, &mut self.out, &mut self.written).is_err() {
                        return;
                    }
                }
                turn = take_turn(&mut self.attached, &mut outgoing, idle, full) => {
                    let Turn::Wrote(read) = turn else { continue };
                    if read == 0 {
                        self.end_session();
                        // Nobody is left to tell whether this worked.
                        drop(tokio::time::timeout(GOODBYE_TIME, self.say_goodbye()).await);
                        return;
                    }
                    codec::put_data(&mut self.out, &outgoing[..read]);
                }
            }
        }
    }

    fn end_session(&mut self) {
        if let Some(session) = self.attached.take() {
            codec::put_close(&mut self.out, session.id);
        }
    }

    async fn say_goodbye(&mut self) -> io::Result<()> {
        self.writer.write_all(&self.out[self.written..]).await?;
        self.writer.flush().await?;
        self.writer.shutdown().await
    }
}

fn note_sent(sent: io::Result<usize>, out: &mut Vec<u8>, written: &mut usize) -> io::Result<()> {
    let sent = sent?;
    if sent == 0 {
        return Err(io::ErrorKind::WriteZero.into());
    }
    *written += sent;
    if *written == out.len() {
        out.clear();
        *written = 0;
    }
    Ok(())
}

/// What the session wrote; 0 when it is gone. Waits for ever when there is none.
async fn read_session(attached: &mut Option<Attached>, buffer: &mut [u8]) -> usize {
    match attached {
        // The stream is in memory: an error can only mean that the other end is gone.
        Some(session) => session.end.outbound.read(buffer).await.unwrap_or(0),
        None => std::future::pending().await,
    }
}

/// What the session on the host did.
enum Turn {
    /// It wrote this much; 0 when it is gone.
    Wrote(usize),
    /// It read, and may be given more.
    HasRoom,
}

async fn take_turn(attached: &mut Option<Attached>, buffer: &mut [u8], may_write: bool, full: bool) -> Turn {
    let Some(Attached {
        end: PumpEnd { outbound, inbound, .. },
        ..
    }) = attached
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        read = outbound.read(buffer), if may_write => Turn::Wrote(read.unwrap_or(0)),
        () = inbound.has_room(), if full => Turn::HasRoom,
        else => std::future::pending().await,
    }
}

async fn finish<F: Future<Output = ()>>(running: &mut Option<Pin<Box<F>>>) {
    match running {
        Some(future) => future.as_mut().await,
        None => std::future::pending().await,
    }
}
