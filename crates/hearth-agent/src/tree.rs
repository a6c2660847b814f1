//! Whole folders as tar streams. What was unpacked stays when the rest is refused.

use std::io;
use std::path::Path;

use bytes::Bytes;
use hearth_guest::files::{FaultCode, Unpacked};
use hearth_tree::{Links, Options, UnpackError};
use http::{Request, StatusCode};
use hyper::body::Incoming;
use tokio::sync::mpsc;

use crate::files::{ALL_MODE_BITS, Query};
use crate::fs::{fault, user};
use crate::reply::{self, Fault, Reply};
use crate::upload::with_reader;
use crate::users::Identity;

/// Chunks on their way to the connection.
const CHUNKS: usize = 4;
/// How long one is.
const CHUNK_BYTES: usize = 64 * 1024;

/// `PUT /v1/tree`: the host's own way, owned by root.
pub(crate) async fn write(request: Request<Incoming>) -> Result<Reply, Fault> {
    let target = Query::of(&request).path()?;
    let work = move |body| unpack(&target, body, None, None);
    with_reader(request.into_body(), None, work).await?;
    Ok(reply::done())
}

/// Unpacks below a folder; everything belongs to the owner, or to who does it.
pub(crate) fn unpack(
    target: &Path,
    body: impl io::Read,
    owner: Option<(u32, u32)>,
    user: Option<&Identity>,
) -> Result<Unpacked, Fault> {
    let options = Options {
        links: Links::All,
        mode_mask: ALL_MODE_BITS,
        owner,
    };
    let done = hearth_tree::unpack(target, body, options).map_err(|error| match (error, user) {
        (UnpackError::Here { path, error }, Some(user)) => fault::of(&path, user, &error),
        (UnpackError::Here { path, error }, None) => Fault::from_io(&path.display().to_string(), &error),
        (error @ UnpackError::Outside(_), _) => fault::invalid(error.to_string()),
        (error @ UnpackError::Stream(_), _) => fault::invalid(format!("{error}; what was unpacked before stays")),
    })?;
    Ok(Unpacked {
        files: done.files,
        bytes: done.bytes,
        left_out: done.skipped.left_out,
        failed: done.skipped.failed,
        named: done.skipped.named,
    })
}

/// A folder as the body of a reply. What goes wrong before the first byte is a fault.
pub(crate) async fn read(path: std::path::PathBuf, user: Identity) -> Result<Reply, Fault> {
    let (sender, mut chunks) = mpsc::channel(CHUNKS);
    let work = {
        let user = user.clone();
        move || {
            let is_file = std::fs::metadata(&path).is_ok_and(|found| !found.is_dir());
            if is_file {
                let message = format!("{} is not a folder: read it as a file", path.display());
                return Err(fault::conflict(FaultCode::NotFolder, message));
            }
            let to = io::BufWriter::with_capacity(CHUNK_BYTES, Chunks(sender));
            hearth_tree::pack(&path, to)
                .map(drop)
                .map_err(|error| fault::of(&path, &user, &error))
        }
    };
    let packing = tokio::spawn(async move { user::run(Some(&user), work).await });
    let Some(first) = chunks.recv().await else {
        let failed = || Fault {
            code: None,
            status: StatusCode::INTERNAL_SERVER_ERROR,
            message: "the folder could not be packed".to_owned(),
        };
        return Err(packing.await.ok().and_then(Result::err).unwrap_or_else(failed));
    };
    let rest = futures::stream::poll_fn(move |context| chunks.poll_recv(context));
    let all = futures::StreamExt::chain(futures::stream::iter([first]), rest);
    Ok(reply::stream(futures::StreamExt::map(all, Ok)))
}

/// The reply's body as a writer; it breaks when nobody takes the chunks any more.
struct Chunks(mpsc::Sender<Bytes>);

impl io::Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let chunk = Bytes::copy_from_slice(bytes);
        let sent = self.0.blocking_send(chunk);
        sent.map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
