//! Files in a VM: read by lines, written whole, edited by a text that is there.

use std::io;

use bytes::Bytes;
use futures::StreamExt as _;
use hearth_api::client::{Client, WriteOptions};
use hearth_api::file::FileKind;
use hearth_api::ids::InstanceId;

use crate::arguments::{EditFile, ReadFile, WriteFile};
use crate::find;
use crate::refusal::Refusal;

/// Lines of a reply when nothing else is asked for.
const DEFAULT_LINES: u64 = 500;
/// Bytes of a reply.
const MOST_BYTES: usize = 24 * 1024;
/// Largest file that is edited.
const MOST_EDITED: u64 = 4 * 1024 * 1024;
/// Entries of a folder that are listed.
const MOST_ENTRIES: usize = 300;

pub(crate) async fn read_file(client: &Client, arguments: ReadFile) -> Result<String, Refusal> {
    let id = find::instance(client, &arguments.instance).await?;
    let path = arguments.path.as_str();
    let entry = client.stat_file(&id, path, None).await?;
    if entry.kind == FileKind::Directory {
        return list(client, &id, path).await;
    }
    let first = arguments.offset.unwrap_or(1).max(1);
    let most = arguments.limit.unwrap_or(DEFAULT_LINES);
    let mut lines = Lines::new(first, most);
    let mut content = client.read_file(&id, path, None, None).await?.body;
    while let Some(chunk) = content.next().await {
        if lines.take(&chunk?) {
            break;
        }
    }
    drop(content);
    lines.reply(entry.size)
}

async fn list(client: &Client, id: &InstanceId, path: &str) -> Result<String, Refusal> {
    let list = client.list_files(id, path, None, Some(1), Some(MOST_ENTRIES)).await?;
    let mut lines: Vec<String> = list
        .items
        .iter()
        .map(|entry| match entry.kind {
            FileKind::Directory => format!("{}/", entry.name),
            FileKind::Symlink => format!("{} -> {}", entry.name, entry.symlink_target.as_deref().unwrap_or("?")),
            FileKind::File | FileKind::Other => format!("{} ({} bytes)", entry.name, entry.size),
        })
        .collect();
    if lines.is_empty() {
        lines.push("the folder is empty".to_owned());
    }
    if list.truncated {
        lines.push(format!("[only {MOST_ENTRIES} entries; use `run` with ls for more]"));
    }
    Ok(lines.join("\n"))
}

/// The lines of a file that are wanted, as its bytes come.
struct Lines {
    first: u64,
    most: u64,
    /// Number of the line that the next byte belongs to.
    at: u64,
    /// That line has a byte.
    in_line: bool,
    kept: Vec<u8>,
    is_cut: bool,
}

impl Lines {
    fn new(first: u64, most: u64) -> Self {
        Self {
            first,
            most,
            at: 1,
            in_line: false,
            kept: Vec::new(),
            is_cut: false,
        }
    }

    /// Whether that is all.
    fn take(&mut self, bytes: &[u8]) -> bool {
        for byte in bytes {
            if self.at >= self.first.saturating_add(self.most) || self.kept.len() >= MOST_BYTES {
                self.is_cut = true;
                return true;
            }
            if self.at >= self.first {
                self.kept.push(*byte);
            }
            self.in_line = *byte != b'\n';
            if !self.in_line {
                self.at += 1;
            }
        }
        false
    }

    fn reply(mut self, size: u64) -> Result<String, Refusal> {
        if self.kept.contains(&0) {
            return Err(Refusal::new(format!(
                "the file is not a text ({size} bytes): use `run` with a program that reads it, like `xxd` or `file`"
            )));
        }
        if self.kept.is_empty() && size > 0 && !self.is_cut {
            // After the last line end there is no line.
            let lines = if self.in_line { self.at } else { self.at - 1 };
            return Err(Refusal::new(format!(
                "the file has {lines} lines, and `offset` is {}",
                self.first
            )));
        }
        // A line that is cut is read again whole, unless it is all there is.
        if self.is_cut
            && self.at < self.first.saturating_add(self.most)
            && let Some(end) = self.kept.iter().rposition(|byte| *byte == b'\n')
        {
            self.kept.truncate(end + 1);
        }
        let mut text = String::from_utf8_lossy(&self.kept).into_owned();
        if self.is_cut && self.at == self.first {
            // Asked for again it would be as long.
            text.push_str(&format!(
                "\n[the file has {size} bytes; line {} is longer than what is shown: read on in it with `run`, like `sed -n {}p FILE | cut -b \
                 {}-`; the next line is {}: `offset`]",
                self.at,
                self.at,
                self.kept.len() + 1,
                self.at + 1
            ));
        } else if self.is_cut {
            text.push_str(&format!(
                "\n[the file has {size} bytes; the next line is {}: `offset`]",
                self.at
            ));
        }
        Ok(text)
    }
}

pub(crate) async fn write_file(client: &Client, arguments: WriteFile) -> Result<String, Refusal> {
    let id = find::instance(client, &arguments.instance).await?;
    let mode = arguments.mode.as_deref().map(|mode| u32::from_str_radix(mode, 8));
    let mode = mode
        .transpose()
        .map_err(|_| Refusal::new("`mode` must be octal permission bits, like 0755"))?;
    write(client, &id, &arguments.path, mode, arguments.content).await
}

async fn write(
    client: &Client,
    id: &InstanceId,
    path: &str,
    mode: Option<u32>,
    content: String,
) -> Result<String, Refusal> {
    let options = WriteOptions {
        mode,
        ..WriteOptions::default()
    };
    let body = futures::stream::iter([Ok::<_, io::Error>(Bytes::from(content))]);
    let entry = client.write_file(id, path, &options, body).await?;
    Ok(format!("{} has {} bytes", entry.path, entry.size))
}

pub(crate) async fn edit_file(client: &Client, arguments: EditFile) -> Result<String, Refusal> {
    let EditFile {
        instance,
        path,
        old,
        new,
        all,
    } = arguments;
    if old.is_empty() {
        return Err(Refusal::new(
            "`old` is empty: give the text that is to be replaced, or use `write_file`",
        ));
    }
    let id = find::instance(client, &instance).await?;
    let entry = client.stat_file(&id, &path, None).await?;
    if entry.size > MOST_EDITED {
        return Err(Refusal::new(format!(
            "the file has {} bytes, which is too much to edit here: use `run` with a program like sed",
            entry.size
        )));
    }
    let mut content = Vec::new();
    let mut body = client.read_file(&id, &path, None, None).await?.body;
    while let Some(chunk) = body.next().await {
        content.extend_from_slice(&chunk?);
    }
    let content = String::from_utf8(content).map_err(|_| Refusal::new("the file is not a text in UTF-8: use `run`"))?;
    let edited = replaced(&content, &old, &new, all.unwrap_or(false))?;
    write(client, &id, &path, None, edited).await
}

fn replaced(content: &str, old: &str, new: &str, all: bool) -> Result<String, Refusal> {
    match content.matches(old).count() {
        0 => Err(Refusal::new(
            "`old` is not in the file, letter by letter: read the file again and copy the text, blanks included",
        )),
        1 => Ok(content.replacen(old, new, 1)),
        _ if all => Ok(content.replace(old, new)),
        count => Err(Refusal::new(format!(
            "`old` is in the file {count} times: give more of the text around it, or `all`: true"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, first: u64, most: u64) -> Result<String, String> {
        let mut lines = Lines::new(first, most);
        // In small chunks, as they may come.
        for chunk in text.as_bytes().chunks(3) {
            if lines.take(chunk) {
                break;
            }
        }
        lines.reply(text.len() as u64).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn lines_are_read_by_number_and_say_where_the_next_ones_are() {
        let text = "one\ntwo\nthree\nfour";
        assert_eq!(read(text, 1, 500).unwrap(), text);
        assert_eq!(
            read(text, 2, 2).unwrap(),
            "two\nthree\n\n[the file has 18 bytes; the next line is 4: `offset`]"
        );
        assert_eq!(read(text, 4, 2).unwrap(), "four");
        assert!(read(text, 9, 1).unwrap_err().contains("has 4 lines"));
        assert_eq!(read("", 1, 5).unwrap(), "");
        assert!(read("a\0b", 1, 5).unwrap_err().contains("not a text"));
        let long = "x".repeat(99).as_str().to_owned() + "\n";
        let cut = read(&long.repeat(1000), 1, 500).unwrap();
        assert!(cut.len() < MOST_BYTES + 100, "{}", cut.len());
        assert!(cut.contains("the next line is 246"), "{}", &cut[cut.len() - 80..]);
        // Where one line is more than is shown, reading on does not show the same again.
        let text = format!("one\n{}\nthree", "y".repeat(2 * MOST_BYTES));
        let cut = read(&text, 2, 500).unwrap();
        let said = &cut[MOST_BYTES..];
        assert!(
            said.contains("line 2 is longer") && said.contains(&format!("{}-", MOST_BYTES + 1)),
            "{said}"
        );
        assert!(said.contains("the next line is 3"), "{said}");
        assert_eq!(read(&text, 3, 500).unwrap(), "three");
        assert!(read(&text, 4, 500).unwrap_err().contains("has 3 lines"));
        assert!(read("one\ntwo\n", 5, 1).unwrap_err().contains("has 2 lines"));
    }

    #[test]
    fn edit_names_what_is_wrong_with_its_text() {
        assert_eq!(replaced("a b a", "b", "c", false).unwrap(), "a c a");
        assert_eq!(replaced("a b a", "a", "", true).unwrap(), " b ");
        let refused = |old| replaced("a b a", old, "c", false).unwrap_err().to_string();
        assert!(refused("x").contains("not in the file"));
        assert!(refused("a").contains("2 times"));
    }
}
