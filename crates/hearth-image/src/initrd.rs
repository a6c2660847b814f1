//! The initial RAM disk: a cpio archive with the agent as `/init`, the kernel modules it loads, and `/modules`, which names them
//! in their order. Not compressed: unpacking under emulation costs more than reading a few megabytes. The same inputs give the
//! same bytes.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use cpio::NewcBuilder;

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const CONSOLE: u32 = 0o020_600;
/// The kernel's number for `/dev/console`. Without this node process 1 would have no output before it mounts /dev.
const CONSOLE_NUMBER: (u32, u32) = (5, 1);

/// In the archive: where the list of modules lies, and the modules themselves.
const LIST: &str = "modules";
const MODULES_FOLDER: &str = "lib/modules";

struct Archive<W: Write> {
    output: W,
    next_inode: u32,
}

impl<W: Write> Archive<W> {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.add_node(NewcBuilder::new(name).mode(mode), content)
    }

    fn add_node(&mut self, entry: NewcBuilder, content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len())
            .map_err(|_| io::Error::other("a file of 4 GiB does not fit into an initrd"))?;
        self.next_inode += 1;
        let mut writer = entry.ino(self.next_inode).nlink(1).write(&mut self.output, size);
        writer.write_all(content)?;
        writer.finish()?;
        Ok(())
    }
}

/// Writes the archive. `order` names files of `modules`, the first to be loaded first.
pub(super) fn write(output: impl Write, agent: &[u8], modules: &Path, order: &[String]) -> io::Result<()> {
    let mut archive = Archive { output, next_inode: 0 };
    for folder in ["dev", "proc", "sys", "run", "newroot", "lib", MODULES_FOLDER] {
        archive.add(folder, FOLDER, &[])?;
    }
    let (major, minor) = CONSOLE_NUMBER;
    archive.add_node(
        NewcBuilder::new("dev/console")
            .mode(CONSOLE)
            .rdev_major(major)
            .rdev_minor(minor),
        &[],
    )?;
    archive.add("init", PROGRAM, agent)?;
    let mut list = String::new();
    for name in order {
        let path = format!("{MODULES_FOLDER}/{name}");
        archive.add(&path, FILE, &fs::read(modules.join(name))?)?;
        list.push_str(&format!("/{path}\n"));
    }
    archive.add(LIST, FILE, list.as_bytes())?;
    cpio::newc::trailer(&mut archive.output)?;
    archive.output.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn entries(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut found = Vec::new();
        loop {
            let mut reader = cpio::NewcReader::new(bytes).unwrap();
            if reader.entry().is_trailer() {
                return found;
            }
            let mut content = Vec::new();
            reader.read_to_end(&mut content).unwrap();
            found.push((reader.entry().name().to_owned(), reader.entry().mode(), content));
            bytes = reader.finish().unwrap();
        }
    }

    #[test]
    fn the_archive_holds_agent_modules_and_their_order_and_is_reproducible() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("b.ko"), "second").unwrap();
        fs::write(folder.path().join("a.ko"), "first!!").unwrap();
        let order = ["b.ko".to_owned(), "a.ko".to_owned()];
        let mut bytes = Vec::new();
        write(&mut bytes, b"agent", folder.path(), &order).unwrap();
        let mut again = Vec::new();
        write(&mut again, b"agent", folder.path(), &order).unwrap();
        assert_eq!(bytes, again);

        let entries = entries(&bytes);
        let content = |name: &str| entries.iter().find(|(entry, ..)| entry == name).cloned().unwrap();
        assert_eq!(content("init"), ("init".into(), PROGRAM, b"agent".to_vec()));
        assert_eq!(content("lib/modules/a.ko").2, b"first!!");
        assert_eq!(content("modules").2, b"/lib/modules/b.ko\n/lib/modules/a.ko\n");
        assert_eq!(content("dev/console").1, CONSOLE);
        // Folders come before what lies in them: the kernel makes no parents.
        let position = |name: &str| entries.iter().position(|(entry, ..)| entry == name).unwrap();
        assert!(position("lib") < position("lib/modules") && position("lib/modules") < position("lib/modules/a.ko"));
    }

    #[test]
    fn a_module_that_is_not_there_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(write(Vec::new(), b"agent", folder.path(), &["x.ko".to_owned()]).is_err());
    }
}
