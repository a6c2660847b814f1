//! The frames below HTTP/2: `[kind u8][length u16, big endian][payload]`, and how to find them again in garbage. No IO.
//!
//! ```text
//! PAD     one zero byte, no length       skipped; enough of it ends any frame that an old host left unfinished
//! OPEN    magic, session id              host → guest: drop what you do, this session begins
//! ACCEPT  magic, session id              guest → host: what follows belongs to that session
//! DATA    1..=16384 bytes                both
//! CLOSE   session id, or zeros for any   both: that session is over
//! ```

use bytes::{Buf, Bytes, BytesMut};

/// Longest payload of a DATA frame. Small, because padding must be able to end one.
pub const MAX_PAYLOAD: usize = 16 * 1024;

/// Length of a frame's kind and length.
pub const HEADER: usize = 3;

const PAD: u8 = 0;
const OPEN: u8 = 1;
const ACCEPT: u8 = 2;
const DATA: u8 = 3;
const CLOSE: u8 = 4;

/// Marks a session's beginning; no byte of it equals the first one, nor a frame kind.
const MAGIC: [u8; 16] = *b"\xf5hearth-session1";
const ID_LENGTH: usize = 16;
const HELLO_LENGTH: usize = MAGIC.len() + ID_LENGTH;

/// What tells one session from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId(pub [u8; ID_LENGTH]);

impl SessionId {
    /// No session: in a CLOSE it means "whatever session you believe in".
    pub const NONE: Self = Self([0; ID_LENGTH]);
}

/// What a decoder found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Guest: the host opens this session; everything before is void.
    Opened(SessionId),
    /// Host: the agent accepted our session.
    Accepted,
    /// Bytes of the running session.
    Data(Bytes),
    /// The session is over.
    Closed(SessionId),
    /// The stream makes no sense any more; the decoder looks for the next session's beginning.
    Garbled,
}

/// Appends what ends any unfinished frame on the other side.
pub fn put_padding(out: &mut Vec<u8>) {
    out.resize(out.len() + HEADER + MAX_PAYLOAD, PAD);
}

/// Appends the host's attempt to open `id`: padding and OPEN.
pub fn put_opening(out: &mut Vec<u8>, id: SessionId) {
    put_padding(out);
    put_hello(out, OPEN, id);
}

/// Appends the guest's answer to OPEN.
pub fn put_accept(out: &mut Vec<u8>, id: SessionId) {
    put_hello(out, ACCEPT, id);
}

/// Appends the end of a session.
pub fn put_close(out: &mut Vec<u8>, id: SessionId) {
    put_header(out, CLOSE, ID_LENGTH);
    out.extend_from_slice(&id.0);
}

/// Appends one DATA frame; only the first [`MAX_PAYLOAD`] bytes fit, and their number is returned.
pub fn put_data(out: &mut Vec<u8>, payload: &[u8]) -> usize {
    let taken = payload.len().min(MAX_PAYLOAD);
    if taken > 0 {
        put_header(out, DATA, taken);
        out.extend_from_slice(&payload[..taken]);
    }
    taken
}

fn put_hello(out: &mut Vec<u8>, kind: u8, id: SessionId) {
    put_header(out, kind, HELLO_LENGTH);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&id.0);
}

fn put_header(out: &mut Vec<u8>, kind: u8, length: usize) {
    debug_assert!(length <= MAX_PAYLOAD, "a frame's length fits two bytes");
    let [.., high, low] = length.to_be_bytes();
    out.extend_from_slice(&[kind, high, low]);
}

/// Turns bytes into [`Event`]s. It starts lost: nothing counts before the beginning of a session.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    /// On the host: the one session whose beginning counts. In the guest: any.
    awaited: Option<SessionId>,
    /// True while frames can be trusted.
    in_step: bool,
}

impl Decoder {
    /// The host's: waits for the answer to `id`.
    #[must_use]
    pub fn host(id: SessionId) -> Self {
        Self {
            buffer: BytesMut::new(),
            awaited: Some(id),
            in_step: false,
        }
    }

    /// The guest's: waits for any OPEN.
    #[must_use]
    pub fn guest() -> Self {
        Self {
            buffer: BytesMut::new(),
            awaited: None,
            in_step: false,
        }
    }

    /// Takes bytes from the transport.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next thing in the bytes taken so far.
    pub fn next_event(&mut self) -> Option<Event> {
        if self.in_step {
            self.next_frame()
        } else {
            self.find_beginning()
        }
    }

    fn hello_kind(&self) -> u8 {
        if self.awaited.is_some() { ACCEPT } else { OPEN }
    }

    /// Lost: skips everything up to the beginning of a session.
    fn find_beginning(&mut self) -> Option<Event> {
        let mut pattern = Vec::with_capacity(HEADER + HELLO_LENGTH);
        put_header(&mut pattern, self.hello_kind(), HELLO_LENGTH);
        pattern.extend_from_slice(&MAGIC);
        if let Some(id) = self.awaited {
            pattern.extend_from_slice(&id.0);
        }
        loop {
            let Some(start) = self.buffer.windows(pattern.len()).position(|window| window == pattern) else {
                // The pattern may have begun in the last bytes.
                let useless = (self.buffer.len() + 1).saturating_sub(pattern.len());
                self.buffer.advance(useless);
                return None;
            };
            self.buffer.advance(start);
            if self.buffer.len() < HEADER + HELLO_LENGTH {
                return None;
            }
            match self.take_hello() {
                Some(event) => {
                    self.in_step = true;
                    return Some(event);
                }
                // A beginning without an id is a leftover that padding has cut off.
                None => self.buffer.advance(1),
            }
        }
    }

    /// Reads the complete OPEN or ACCEPT at the front; `None` (and nothing taken) when it is not a true one.
    fn take_hello(&mut self) -> Option<Event> {
        let body = self.buffer.get(HEADER..HEADER + HELLO_LENGTH)?;
        let (magic, id) = body.split_at(MAGIC.len());
        let id = SessionId(id.try_into().ok()?);
        if magic != MAGIC || id == SessionId::NONE {
            return None;
        }
        self.buffer.advance(HEADER + HELLO_LENGTH);
        Some(if self.awaited.is_some() {
            Event::Accepted
        } else {
            Event::Opened(id)
        })
    }

    /// In step: reads one frame.
    fn next_frame(&mut self) -> Option<Event> {
        let padding = self.buffer.iter().take_while(|byte| **byte == PAD).count();
        self.buffer.advance(padding);
        let [kind, high, low] = *self.buffer.first_chunk::<HEADER>()?;
        let length = usize::from(u16::from_be_bytes([high, low]));
        let plausible = match kind {
            DATA => (1..=MAX_PAYLOAD).contains(&length),
            CLOSE => length == ID_LENGTH,
            kind => kind == self.hello_kind() && length == HELLO_LENGTH,
        };
        if !plausible {
            return Some(self.lose_step());
        }
        if self.buffer.len() < HEADER + length {
            return None;
        }
        match kind {
            DATA => {
                self.buffer.advance(HEADER);
                Some(Event::Data(self.buffer.split_to(length).freeze()))
            }
            CLOSE => {
                self.buffer.advance(HEADER);
                let mut id = [0; ID_LENGTH];
                self.buffer.copy_to_slice(&mut id);
                Some(Event::Closed(SessionId(id)))
            }
            _ => match self.take_hello() {
                Some(event) => Some(event),
                None => Some(self.lose_step()),
            },
        }
    }

    fn lose_step(&mut self) -> Event {
        self.in_step = false;
        Event::Garbled
    }
}
