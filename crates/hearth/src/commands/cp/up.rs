//! Into a VM.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use hearth_api::client::{ClientError, WriteOptions};
use hearth_api::file::FileKind;
use tokio_util::io::ReaderStream;

use super::location::{Location, means_content, own_name};
use super::progress::Progress;
use super::{Copied, Vm, channel};
use crate::commands::exec::until_stopped;
use crate::failure::Failure;

/// How much is read at once.
const CHUNK_BYTES: usize = 64 * 1024;
/// Permission bits that travel.
const MODE_BITS: u32 = 0o7777;

pub(super) async fn copy(
    vm: &Vm<'_>,
    from: &Location,
    to: &str,
    into: bool,
    progress: &Progress,
) -> Result<Copied, Failure> {
    let Location::Here(from) = from else {
        if into {
            return Err(Failure::usage("standard input becomes one file: name that file alone"));
        }
        let input = tokio::fs::File::from_std(stdin()?);
        return until_stopped(file(vm, input, None, to, progress)).await;
    };
    let here = |error: io::Error| Failure::new(format!("{}: {error}", from.display()));
    let found = std::fs::metadata(from).map_err(here)?;
    let is_content = found.is_dir() && means_content(from);
    let target = if is_content {
        to.to_owned()
    } else {
        target(vm, to, into, || own_or_real_name(from).map_err(here)).await?
    };
    if found.is_dir() {
        return folder(vm, from, &target, progress).await;
    }
    let file_here = tokio::fs::File::open(from).await.map_err(here)?;
    if found.is_file() {
        progress.expect(found.len());
    }
    let mode = found.is_file().then(|| found.mode() & MODE_BITS);
    until_stopped(file(vm, file_here, mode, &target, progress)).await
}

/// Our standard input as a file of its own: reading it needs no lock, and its end does not wait for anybody.
fn stdin() -> Result<std::fs::File, Failure> {
    use std::os::fd::AsFd as _;
    let input = io::stdin().as_fd().try_clone_to_owned();
    Ok(std::fs::File::from(input?))
}

fn own_or_real_name(path: &Path) -> io::Result<OsString> {
    if let Some(name) = own_name(path) {
        return Ok(name);
    }
    // `..` is called as the folder that it is.
    let real = std::fs::canonicalize(path)?;
    own_name(&real).ok_or_else(|| io::Error::other("it has no name; copy what it holds: write /. behind it"))
}

/// Where the copy will be: in a folder that is there, else under the name that was given.
async fn target(
    vm: &Vm<'_>,
    to: &str,
    into: bool,
    name: impl FnOnce() -> Result<OsString, Failure>,
) -> Result<String, Failure> {
    let is_folder = to.ends_with('/') || is_folder(vm, to).await?;
    if into && !is_folder {
        return Err(Failure::new(format!("{to} is no folder in the VM"))
            .hint("several files need a folder; write / behind a new one"));
    }
    if !is_folder {
        return Ok(to.to_owned());
    }
    let name = name()?;
    let name = name
        .to_str()
        .ok_or_else(|| Failure::new("a name that is not UTF-8 can only be copied with its folder"))?;
    Ok(format!("{}/{name}", to.trim_end_matches('/')))
}

async fn is_folder(vm: &Vm<'_>, path: &str) -> Result<bool, Failure> {
    match vm.client.stat_file(&vm.id, path, vm.user).await {
        Ok(found) if found.kind == FileKind::Symlink => {
            Ok(vm.client.list_files(&vm.id, path, vm.user, None, Some(1)).await.is_ok())
        }
        Ok(found) => Ok(found.kind == FileKind::Directory),
        Err(error) if error.is_not_found() && is_about_the_file(&error) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// An instance that is not there is 404, too.
fn is_about_the_file(error: &ClientError) -> bool {
    error.to_string().ends_with(" does not exist")
}

/// Why a stream broke, when it broke here.
#[derive(Clone, Default)]
struct Fault(Arc<Mutex<Option<io::Error>>>);

impl Fault {
    /// The same stream; what goes wrong in it is noted.
    fn watch<S>(&self, stream: S) -> impl Stream<Item = io::Result<Bytes>> + Send + use<S>
    where
        S: Stream<Item = io::Result<Bytes>> + Send,
    {
        let noted = self.clone();
        stream.map(move |chunk| {
            chunk.map_err(|error| {
                let kind = error.kind();
                *noted.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                kind.into()
            })
        })
    }

    fn explain(&self, what: &str, error: ClientError) -> Failure {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(fault) => Failure::new(format!("{what}: {fault}")),
            None => error.into(),
        }
    }
}

async fn file(
    vm: &Vm<'_>,
    from: tokio::fs::File,
    mode: Option<u32>,
    target: &str,
    progress: &Progress,
) -> Result<Copied, Failure> {
    // A file that is there keeps its mode.
    let is_there = mode.is_some() && vm.client.stat_file(&vm.id, target, vm.user).await.is_ok();
    let options = WriteOptions {
        user: vm.user.map(str::to_owned),
        mode: mode.filter(|_| !is_there),
        owner: None,
    };
    let fault = Fault::default();
    let moves = progress.clone();
    let chunks = ReaderStream::with_capacity(from, CHUNK_BYTES).inspect(move |chunk| {
        if let Ok(chunk) = chunk {
            moves.moved(chunk.len());
        }
    });
    let written = vm
        .client
        .write_file(&vm.id, target, &options, fault.watch(chunks))
        .await
        .map_err(|error| fault.explain("what is copied cannot be read", error))?;
    Ok(Copied {
        files: 1,
        bytes: written.size,
        ..Copied::default()
    })
}

async fn folder(vm: &Vm<'_>, from: &Path, target: &str, progress: &Progress) -> Result<Copied, Failure> {
    let options = WriteOptions {
        user: vm.user.map(str::to_owned),
        ..WriteOptions::default()
    };
    let (mut writer, chunks) = channel::to_stream();
    let location = from.to_owned();
    let packer = tokio::task::spawn_blocking(move || -> io::Result<()> {
        hearth_tree::pack(&location, &mut writer)?;
        writer.into_inner().map_err(io::IntoInnerError::into_error)?.end()
    });
    let moves = progress.clone();
    let chunks = chunks.inspect(move |chunk| {
        if let Ok(chunk) = chunk {
            moves.moved(chunk.len());
        }
    });
    let sent = until_stopped(async move {
        let sent = vm.client.write_tar(&vm.id, target, &options, chunks).await;
        sent.map_err(Failure::from)
    });
    let sent = sent.await;
    let packed = packer.await;
    // A packer that nobody listens to any more has no fault of its own.
    if let Ok(Err(error)) = packed
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        return Err(Failure::new(format!("{}: {error}", from.display())));
    }
    let done = sent?;
    Ok(Copied {
        files: done.files,
        bytes: done.bytes,
        left_out: done.left_out,
        failed: done.failed,
        named: done.named,
    })
}
