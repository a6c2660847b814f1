//! Streams that try to get out, and folders that have been prepared for it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use hearth_tree::{Links, Options, UnpackError, Unpacked, unpack};
use tar::EntryType;

const INSIDE: Options = Options {
    links: Links::Inside,
    mode_mask: 0o777,
    owner: None,
};
const ALL: Options = Options {
    links: Links::All,
    ..INSIDE
};

/// One entry after the other, as written here: the tar crate's own builder refuses what is tested.
fn stream(entries: &[(&str, EntryType, &str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, kind, link, data) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        header.set_size(data.len() as u64);
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        builder.append(&header, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

/// A target with a neighbour that must stay as it is, whatever happens.
fn unpacked(entries: &[(&str, EntryType, &str, &[u8])], options: Options) -> Result<Unpacked, UnpackError> {
    unpacked_into(entries, options, |_| {})
}

fn unpacked_into(
    entries: &[(&str, EntryType, &str, &[u8])],
    options: Options,
    prepare: impl FnOnce(&Path),
) -> Result<Unpacked, UnpackError> {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("neighbour/inner")).unwrap();
    fs::write(folder.path().join("neighbour/file"), "untouched").unwrap();
    let target = folder.path().join("target");
    fs::create_dir(&target).unwrap();
    prepare(&target);
    let result = unpack(&target, &stream(entries)[..], options);
    let mut names: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["neighbour", "target"], "{entries:?}");
    assert_eq!(fs::read_dir(folder.path().join("neighbour")).unwrap().count(), 2);
    assert_eq!(fs::read_dir(folder.path().join("neighbour/inner")).unwrap().count(), 0);
    let path = folder.path().join("neighbour/file");
    assert_eq!(fs::read(&path).unwrap(), b"untouched", "{entries:?}");
    let links = std::os::unix::fs::MetadataExt::nlink(&fs::metadata(path).unwrap());
    assert_eq!(links, 1, "{entries:?}");
    result
}

#[test]
fn paths_that_lead_outside_are_refused() {
    for path in ["../x", "/tmp/hearth-x", "a/../../x", "..", "a/..", "./../neighbour/x"] {
        for kind in [
            EntryType::Regular,
            EntryType::Directory,
            EntryType::Symlink,
            EntryType::Link,
        ] {
            let result = unpacked(&[(path, kind, "y", b"")], ALL);
            assert!(
                matches!(result, Err(UnpackError::Outside(_))),
                "{path} {kind:?} {result:?}"
            );
        }
    }
}

#[test]
fn nothing_is_written_through_a_link_of_the_stream() {
    for way in ["../neighbour", "/tmp", "."] {
        for kind in [EntryType::Regular, EntryType::Directory, EntryType::Symlink] {
            let entries: [(&str, EntryType, &str, &[u8]); 2] =
                [("link", EntryType::Symlink, way, b""), ("link/x", kind, "y", b"")];
            let result = unpacked(&entries, ALL);
            assert!(
                matches!(result, Err(UnpackError::Outside(_))),
                "{way} {kind:?} {result:?}"
            );
        }
    }
    // The link itself is replaced by what has its name.
    let entries: [(&str, EntryType, &str, &[u8]); 2] = [
        ("link", EntryType::Symlink, "../neighbour/file", b""),
        ("link", EntryType::Regular, "", b"changed"),
    ];
    assert_eq!(unpacked(&entries, ALL).unwrap().files, 1);
    let entries: [(&str, EntryType, &str, &[u8]); 2] = [
        ("link", EntryType::Symlink, "../neighbour/inner", b""),
        ("link", EntryType::Directory, "", b""),
    ];
    assert!(matches!(unpacked(&entries, ALL), Err(UnpackError::Outside(_))));
}

#[test]
fn nothing_is_written_through_a_link_that_was_there_before() {
    let prepare = |target: &Path| {
        symlink("../neighbour", target.join("out")).unwrap();
        symlink("../neighbour/file", target.join("file")).unwrap();
    };
    let below: [(&str, EntryType, &str, &[u8]); 1] = [("out/file", EntryType::Regular, "", b"changed")];
    assert!(matches!(
        unpacked_into(&below, INSIDE, prepare),
        Err(UnpackError::Outside(_))
    ));
    let over: [(&str, EntryType, &str, &[u8]); 1] = [("file", EntryType::Regular, "", b"changed")];
    assert_eq!(unpacked_into(&over, INSIDE, prepare).unwrap().files, 1);
}

#[test]
fn hard_links_to_the_outside_are_refused() {
    for source in ["../neighbour/file", "/etc/passwd", "a/../../neighbour/file"] {
        let result = unpacked(&[("stolen", EntryType::Link, source, b"")], ALL);
        assert!(matches!(result, Err(UnpackError::Outside(_))), "{source} {result:?}");
    }
    // Through a link.
    let entries: [(&str, EntryType, &str, &[u8]); 2] = [
        ("link", EntryType::Symlink, "../neighbour", b""),
        ("stolen", EntryType::Link, "link/file", b""),
    ];
    assert!(matches!(unpacked(&entries, ALL), Err(UnpackError::Outside(_))));
    // A hard link to a link is one more link, and nothing is written through it.
    let entries: [(&str, EntryType, &str, &[u8]); 3] = [
        ("link", EntryType::Symlink, "../neighbour/file", b""),
        ("stolen", EntryType::Link, "link", b""),
        ("stolen", EntryType::Regular, "", b"changed"),
    ];
    assert_eq!(unpacked(&entries, ALL).unwrap().files, 1);
}

#[test]
fn devices_are_skipped_and_a_folder_is_not_replaced_by_a_file() {
    let result = unpacked(
        &[("null", EntryType::Char, "", b""), ("pipe", EntryType::Fifo, "", b"")],
        INSIDE,
    );
    assert_eq!(result.unwrap().skipped.left_out, 2);
    let entries: [(&str, EntryType, &str, &[u8]); 2] = [
        ("d/x", EntryType::Regular, "", b"x"),
        ("d", EntryType::Regular, "", b"y"),
    ];
    let result = unpacked(&entries, INSIDE);
    assert!(matches!(result, Err(UnpackError::Here { .. })), "{result:?}");
}

#[test]
fn what_is_no_tar_stream_is_said_to_be_none() {
    let folder = tempfile::tempdir().unwrap();
    let result = unpack(folder.path(), &[7; 2000][..], INSIDE);
    assert!(matches!(result, Err(UnpackError::Stream(_))), "{result:?}");
    // A header that promises more than anybody has.
    let mut stream = stream(&[("x", EntryType::Regular, "", b"")]);
    let mut header = tar::Header::new_gnu();
    header.set_path("huge").unwrap();
    header.set_size(u64::MAX / 2);
    header.set_mode(0o644);
    header.set_cksum();
    stream.truncate(512);
    stream.extend_from_slice(header.as_bytes());
    stream.extend_from_slice(&[0; 700]);
    let result = unpack(folder.path(), &stream[..], INSIDE);
    assert!(matches!(result, Err(UnpackError::Stream(_))), "{result:?}");
    assert!(!folder.path().join("huge").exists());
}
