//! Out of a VM.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Seek as _, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt as _;
use hearth_api::client::{ClientError, FileContent};
use hearth_api::file::FileKind;
use hearth_tree::{Links, Options, UnpackError, Unpacked};

use super::location::{Location, means_content, own_name};
use super::progress::Progress;
use super::{Copied, Vm, channel};
use crate::commands::exec::until_stopped;
use crate::failure::Failure;
use crate::hint;
use crate::text::clean_line;

/// Permission bits that travel: a VM does not make programs here that run as somebody else.
const MODE_BITS: u32 = 0o777;
/// How often a file whose connection broke is gone on with.
const ATTEMPTS: u32 = 5;
/// Pause before the first of them; doubled for each further one.
const PAUSE: Duration = Duration::from_millis(500);

pub(super) async fn copy(
    vm: &Vm<'_>,
    path: &str,
    to: &Location,
    into: bool,
    progress: &Progress,
) -> Result<Copied, Failure> {
    let to = match to {
        Location::Here(to) => to,
        _ if into => return Err(Failure::usage("only one file can be copied to standard output")),
        _ => return until_stopped(to_stdout(vm, path, progress)).await,
    };
    let found = vm.client.stat_file(&vm.id, path, vm.user).await?;
    let is_folder = match found.kind {
        FileKind::Directory => true,
        // A link that is named is followed, as `cp` does.
        FileKind::Symlink => vm.client.list_files(&vm.id, path, vm.user, None, Some(1)).await.is_ok(),
        FileKind::File | FileKind::Other => false,
    };
    let name = own_name(Path::new(path)).map_or_else(|| guest_name(&found.name), Ok);
    let is_content = is_folder && means_content(Path::new(path));
    let target = target(to, name, into, is_content)?;
    if is_folder {
        folder(vm, path, &target, progress).await
    } else {
        until_stopped(file(vm, path, &target, progress)).await
    }
}

/// A name that a VM said. It must be one, and not a way to somewhere.
fn guest_name(name: &str) -> Result<OsString, Failure> {
    own_name(Path::new(name))
        .filter(|own| own == name)
        .ok_or_else(|| Failure::new(format!("`{}` is no name for a file here", clean_line(name))))
}

/// Where the copy will be.
fn target(to: &Path, name: Result<OsString, Failure>, into: bool, is_content: bool) -> Result<PathBuf, Failure> {
    use std::os::unix::ffi::OsStrExt as _;
    let is_there = to.is_dir();
    let must_be_there = into || to.as_os_str().as_bytes().ends_with(b"/");
    if must_be_there && !is_there {
        return Err(Failure::new(format!("{} is no folder here", to.display())).hint("make it with `mkdir -p`"));
    }
    if is_there && !is_content {
        return Ok(to.join(name?));
    }
    Ok(to.to_owned())
}

/// What a file's bytes are written to.
trait Output: Write {
    /// Forgets what was written; false when that is impossible.
    fn restart(&mut self) -> io::Result<bool>;
}

impl Output for File {
    fn restart(&mut self) -> io::Result<bool> {
        self.set_len(0)?;
        self.seek(SeekFrom::Start(0))?;
        Ok(true)
    }
}

impl Output for io::Stdout {
    fn restart(&mut self) -> io::Result<bool> {
        Ok(false)
    }
}

async fn to_stdout(vm: &Vm<'_>, path: &str, progress: &Progress) -> Result<Copied, Failure> {
    let content = match vm.client.read_file(&vm.id, path, vm.user, None).await {
        Ok(content) => content,
        Err(refused) => {
            let found = vm.client.stat_file(&vm.id, path, vm.user).await;
            if found.is_ok_and(|found| found.kind == FileKind::Directory) {
                let failure = Failure::new(format!(
                    "{} is a folder, and standard output takes one file",
                    clean_line(path)
                ));
                let tar = hint::command(["exec", vm.id.as_str()]);
                return Err(failure.hint(format!("`{tar} -- tar c -C {} .` writes it as a tar", clean_line(path))));
            }
            return Err(refused.into());
        }
    };
    let bytes = fetch(vm, path, content, &mut io::stdout(), progress).await?;
    io::stdout().flush()?;
    Ok(one_file(bytes))
}

fn one_file(bytes: u64) -> Copied {
    Copied {
        files: 1,
        bytes,
        ..Copied::default()
    }
}

async fn file(vm: &Vm<'_>, path: &str, target: &Path, progress: &Progress) -> Result<Copied, Failure> {
    let here = |error: io::Error| Failure::new(format!("{}: {error}", target.display()));
    let content = vm.client.read_file(&vm.id, path, vm.user, None).await?;
    // Where a link leads, as `cp` does.
    let location = fs::canonicalize(target).unwrap_or_else(|_| target.to_owned());
    let existing = fs::metadata(&location).ok();
    if let Some(existing) = &existing
        && !existing.is_file()
    {
        // A device or a pipe: there is nothing that could take its place.
        let mut to = OpenOptions::new().write(true).open(&location).map_err(here)?;
        return Ok(one_file(fetch(vm, path, content, &mut to, progress).await?));
    }
    let folder = location.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mode = content.mode.unwrap_or(0o644) & MODE_BITS;
    // Removed unless it gets its name. What the umask takes away is not given.
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        let message = format!("there is no folder {} here", folder.display());
        return Err(Failure::new(message).hint("make it with `mkdir -p`"));
    }
    let mut file = tempfile::Builder::new()
        .prefix(".hearth-")
        .permissions(Permissions::from_mode(mode | 0o200))
        .tempfile_in(folder.unwrap_or(Path::new(".")))
        .map_err(here)?;
    let bytes = fetch(vm, path, content, file.as_file_mut(), progress).await?;
    let own = match &existing {
        Some(existing) => Some(existing.mode() & 0o7777),
        None => (mode & 0o200 == 0)
            .then(|| file.as_file().metadata().map(|made| made.mode() & mode))
            .transpose()
            .map_err(here)?,
    };
    if let Some(mode) = own {
        let set = file.as_file().set_permissions(Permissions::from_mode(mode));
        set.map_err(here)?;
    }
    file.persist(&location).map_err(|error| here(error.error))?;
    Ok(one_file(bytes))
}

/// All bytes of a file; a connection that breaks is made again, and the file gone on with where it stopped.
async fn fetch(
    vm: &Vm<'_>,
    path: &str,
    mut content: FileContent,
    to: &mut impl Output,
    progress: &Progress,
) -> Result<u64, Failure> {
    let mut written = 0;
    let mut attempt = 0;
    if let Some(length) = content.length {
        progress.expect(length);
    }
    loop {
        let broken = loop {
            match content.body.next().await {
                None => return Ok(written),
                Some(Ok(chunk)) => {
                    to.write_all(&chunk)?;
                    written += chunk.len() as u64;
                    progress.moved(chunk.len());
                }
                Some(Err(error)) => break error,
            }
        };
        let Some(etag) = content.etag.take() else {
            return Err(broken.into());
        };
        if attempt >= ATTEMPTS || !matches!(broken, ClientError::Interrupted { .. }) {
            return Err(broken.into());
        }
        tokio::time::sleep(PAUSE * 2u32.pow(attempt)).await;
        attempt += 1;
        content = vm
            .client
            .read_file(&vm.id, path, vm.user, Some((written, &etag)))
            .await?;
        if content.offset != written {
            if !to.restart()? {
                return Err(Failure::new(
                    "the connection broke, and the file has changed meanwhile: what was printed is a part of the older one",
                ));
            }
            progress.restart();
            written = 0;
        }
    }
}

async fn folder(vm: &Vm<'_>, path: &str, target: &Path, progress: &Progress) -> Result<Copied, Failure> {
    if target.exists() && !target.is_dir() {
        return Err(Failure::new(format!("{} is here and no folder", target.display())));
    }
    let mut stream = vm.client.read_tar(&vm.id, path, vm.user).await?;
    let (sender, reader) = channel::to_reader();
    let location = target.to_owned();
    let options = Options {
        links: Links::Inside,
        mode_mask: MODE_BITS,
        owner: None,
    };
    let worker = tokio::task::spawn_blocking(move || hearth_tree::unpack(&location, reader, options));
    let fed = until_stopped(async move {
        while let Some(chunk) = stream.next().await {
            let chunk = chunk?;
            progress.moved(chunk.len());
            if sender.send(Some(chunk)).await.is_err() {
                // It has failed; it says why.
                return Ok(());
            }
        }
        // As above.
        drop(sender.send(None).await);
        Ok(())
    });
    let fed = fed.await;
    // Always waited for: it removes what is half.
    let done = worker.await;
    fed?;
    let done = done.map_err(|error| Failure::new(format!("the copy failed: {error}")))?;
    let Unpacked { files, bytes, skipped } = done.map_err(refused)?;
    Ok(Copied {
        files,
        bytes,
        left_out: skipped.left_out,
        failed: skipped.failed,
        named: skipped.named,
    })
}

fn refused(error: UnpackError) -> Failure {
    let failure = Failure::new(clean_line(&error.to_string()));
    match error {
        UnpackError::Outside(_) => failure
            .hint("a link on the way, here or in the VM, may lead there: nothing outside of the folder was touched"),
        _ => failure.hint("what was copied before is whole and stays; the same command does it again"),
    }
}
