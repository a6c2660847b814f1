//! What goes in comes out.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use hearth_tree::{Links, Options, Unpacked, pack, unpack};

const ALL: Options = Options {
    links: Links::All,
    mode_mask: 0o7777,
    owner: None,
};

fn packed(folder: &Path) -> Vec<u8> {
    let mut stream = Vec::new();
    pack(folder, &mut stream).unwrap();
    stream
}

fn copied(from: &Path, to: &Path, options: Options) -> Unpacked {
    unpack(to, &packed(from)[..], options).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn files_folders_links_modes_and_times_travel() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("deep/to"));
    let long = "l".repeat(200);
    fs::create_dir_all(from.join("a").join(&long).join(&long)).unwrap();
    fs::create_dir(from.join("empty")).unwrap();
    fs::write(from.join("a/run"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(from.join("a/run"), Permissions::from_mode(0o4751)).unwrap();
    fs::write(from.join("a").join(&long).join(&long).join("x"), "deep").unwrap();
    fs::write(from.join("new\nline"), "n").unwrap();
    let bytes = OsStr::from_bytes(b"\xff\xfe");
    fs::write(from.join(bytes), "b").unwrap();
    symlink("/etc/passwd", from.join("absolute")).unwrap();
    symlink("a/run", from.join("relative")).unwrap();
    fs::set_permissions(from.join("empty"), Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(from.join("a"), Permissions::from_mode(0o555)).unwrap();
    let done = copied(&from, &to, ALL);
    assert_eq!((done.files, done.bytes, done.skipped.left_out), (4, 16, 0));
    assert_eq!(mode(&to.join("a/run")), 0o4751);
    assert_eq!((mode(&to.join("empty")), mode(&to.join("a"))), (0o700, 0o555));
    assert_eq!(
        fs::read(to.join("a").join(&long).join(&long).join("x")).unwrap(),
        b"deep"
    );
    assert_eq!(fs::read(to.join("new\nline")).unwrap(), b"n");
    assert_eq!(fs::read(to.join(bytes)).unwrap(), b"b");
    assert_eq!(fs::read_link(to.join("absolute")).unwrap(), Path::new("/etc/passwd"));
    let time = |folder: &Path| fs::metadata(folder.join("a/run")).unwrap().mtime();
    assert_eq!(time(&from), time(&to));
    // Over itself: files are replaced, nothing is left beside them.
    for folder in [&from, &to] {
        fs::set_permissions(folder.join("a"), Permissions::from_mode(0o755)).unwrap();
    }
    fs::write(from.join("a/run"), "new").unwrap();
    copied(&from, &to, ALL);
    assert_eq!(fs::read(to.join("a/run")).unwrap(), b"new");
    let count = |folder: &Path| fs::read_dir(folder).unwrap().count();
    assert_eq!(
        (count(&to), count(&to.join("a"))),
        (count(&from), count(&from.join("a")))
    );
}

#[test]
fn links_that_lead_outside_and_modes_that_are_not_wanted_stay_away() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    fs::create_dir_all(from.join("bin")).unwrap();
    fs::write(from.join("tool"), "t").unwrap();
    fs::set_permissions(from.join("tool"), Permissions::from_mode(0o6755)).unwrap();
    symlink("../tool", from.join("bin/tool")).unwrap();
    symlink("/etc", from.join("etc")).unwrap();
    symlink("../../x", from.join("bin/out")).unwrap();
    let options = Options {
        links: Links::Inside,
        mode_mask: 0o777,
        owner: None,
    };
    let done = copied(&from, &to, options);
    assert_eq!(fs::read(to.join("bin/tool")).unwrap(), b"t");
    assert_eq!(mode(&to.join("tool")), 0o755);
    assert!(fs::symlink_metadata(to.join("etc")).is_err() && fs::symlink_metadata(to.join("bin/out")).is_err());
    assert_eq!(done.skipped.left_out, 2);
    assert!(
        done.skipped
            .named
            .iter()
            .any(|one| one.contains("etc") && one.contains("outside"))
    );
}

#[test]
fn what_cannot_travel_is_named_at_the_other_end() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::write(from.join("file"), "x").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(from.join("a socket")).unwrap();
    let done = copied(&from, &to, ALL);
    assert_eq!((done.files, done.skipped.left_out), (1, 1));
    assert_eq!(done.skipped.named, ["a socket: it is a device, a pipe or a socket"]);
    // Other programs read the stream, too.
    let mut archive = tar::Archive::new(io::Cursor::new(packed(&from)));
    archive.unpack(folder.path().join("other")).unwrap();
    assert!(folder.path().join("other/file").exists());
    // More than can be named are counted.
    let sockets: Vec<_> = (0..70)
        .map(|number| std::os::unix::net::UnixListener::bind(from.join(format!("s{number}"))).unwrap())
        .collect();
    let done = copied(&from, &to, ALL);
    assert_eq!((done.skipped.left_out, done.skipped.named.len()), (71, 50));
    drop(sockets);
}

/// A writer that keeps nothing and watches how much it is given at once.
struct Sink {
    whole: u64,
    largest: usize,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.whole += bytes.len() as u64;
        self.largest = self.largest.max(bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_file_of_gigabytes_passes_in_small_pieces() {
    let folder = tempfile::tempdir().unwrap();
    let large = fs::File::create(folder.path().join("sparse")).unwrap();
    // More than the classic header can say.
    large.set_len(9 << 30).unwrap();
    // Its header alone is looked at: nine gigabytes take a debug build too long.
    let mut stream = Limited {
        inner: Sink { whole: 0, largest: 0 },
        left: 64 << 20,
    };
    pack(folder.path(), &mut stream).unwrap_err();
    assert!(stream.inner.whole >= 64 << 20);
    assert!(stream.inner.largest <= 64 * 1024, "{}", stream.inner.largest);
}

/// Fails when it was given so much.
struct Limited {
    inner: Sink,
    left: u64,
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.left = self.left.saturating_sub(bytes.len() as u64);
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A stream that breaks after this much.
struct Broken<'a>(&'a [u8]);

impl Read for Broken<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        self.0.read(buffer)
    }
}

#[test]
fn a_stream_that_breaks_leaves_no_half_file_wherever_it_breaks() {
    let folder = tempfile::tempdir().unwrap();
    let from = folder.path().join("from");
    fs::create_dir_all(from.join("d")).unwrap();
    fs::write(from.join("d/one"), vec![1; 3000]).unwrap();
    let stream = packed(&from);
    for cut in (0..stream.len()).step_by(97) {
        let to = tempfile::tempdir_in(folder.path()).unwrap();
        fs::create_dir(to.path().join("d")).unwrap();
        fs::write(to.path().join("d/one"), "old").unwrap();
        unpack(to.path(), Broken(&stream[..cut]), ALL).unwrap_err();
        let found = fs::read(to.path().join("d/one")).unwrap();
        assert!(found == b"old" || found == [1; 3000], "cut at {cut}");
        assert_eq!(fs::read_dir(to.path().join("d")).unwrap().count(), 1, "cut at {cut}");
    }
}
