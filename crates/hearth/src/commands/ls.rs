//! `hearth ls`: what a folder in a VM holds.

use bytesize::ByteSize;
use clap::Args;
use hearth_api::error::ErrorCode;
use hearth_api::file::{FileEntry, FileKind, FileList};
use hearth_api::values::Name;

use crate::args::Globals;
use crate::failure::Failure;
use crate::text::clean_line;
use crate::{connect, output, resolve};

const AFTER_HELP: &str = "\
Examples:
  hearth ls last
  hearth ls fix-17 app/src
  hearth ls fix-17:app/src
  hearth ls wpi_… /var/log --depth 3

PATH is absolute, ~/… for the user's home folder, or relative to /home.";

/// `hearth ls`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct LsArgs {
    #[arg(value_name = "INSTANCE", help = resolve::INSTANCE_HELP)]
    id: String,
    /// The folder, or file [default: .]
    path: Option<String>,
    /// How many levels of folders
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    depth: u32,
    /// At most so many entries [default: 10000]
    #[arg(long)]
    limit: Option<usize>,
    /// The user who looks [default: root]
    #[arg(long)]
    user: Option<Name>,
}

pub(crate) async fn run(globals: &Globals, args: LsArgs) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
    let (id, path) = match (&args.path, args.id.split_once(':')) {
        (Some(path), _) => (args.id.as_str(), path.as_str()),
        // As `hearth cp` names a place.
        (None, Some((id, path))) if !path.is_empty() => (id, path),
        (None, Some((id, _))) => (id, "."),
        (None, None) => (args.id.as_str(), "."),
    };
    let id = resolve::instance(&client, id).await?;
    let user = args.user.as_deref();
    let list = match client.list_files(&id, path, user, Some(args.depth), args.limit).await {
        // A file: it stands for itself.
        Err(error) if error.code() == Some(ErrorCode::Conflict) => {
            let Ok(entry) = client.stat_file(&id, path, user).await else {
                return Err(error.into());
            };
            if entry.kind == FileKind::Directory {
                return Err(error.into());
            }
            FileList {
                items: vec![entry],
                truncated: false,
                unreadable: Vec::new(),
            }
        }
        list => list?,
    };
    output::print(globals.json, &list, |list| table(list, args.depth > 1))?;
    if !globals.json {
        for folder in &list.unreadable {
            output::note(&format!("not read: {}: no permission", clean_line(folder)));
        }
        if list.truncated {
            output::note("there are more entries; name a folder below, or give a higher --limit (at most 10000)");
        }
    }
    Ok(0)
}

fn table(list: &FileList, with_paths: bool) -> String {
    if list.items.is_empty() {
        return "the folder is empty".to_owned();
    }
    let row = |entry: &FileEntry| {
        let mut name = clean_line(if with_paths { &entry.path } else { &entry.name });
        if let Some(target) = &entry.symlink_target {
            name.push_str(&format!(" -> {}", clean_line(target)));
        }
        [
            permissions(entry),
            format!("{}:{}", clean_line(&entry.owner), clean_line(&entry.group)),
            ByteSize(entry.size).to_string(),
            output::ago(entry.modified_at),
            name,
        ]
    };
    output::table(["Mode", "Owner", "Size", "Changed", "Name"], list.items.iter().map(row))
}

/// As `ls -l` writes them.
fn permissions(entry: &FileEntry) -> String {
    let mode = u32::from_str_radix(&entry.mode, 8).unwrap_or_default();
    let mut text = String::from(match entry.kind {
        FileKind::File => '-',
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        FileKind::Other => '?',
    });
    for (at, (special, letter)) in [(6, (0o4000, 's')), (3, (0o2000, 's')), (0, (0o1000, 't'))] {
        let bits = mode >> at;
        text.push(if bits & 4 == 0 { '-' } else { 'r' });
        text.push(if bits & 2 == 0 { '-' } else { 'w' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_written_as_ls_writes_them() {
        let text = |kind, mode: &str| {
            permissions(&FileEntry {
                name: String::new(),
                name_base64: None,
                path: String::new(),
                kind,
                size: 0,
                mode: mode.to_owned(),
                uid: 0,
                gid: 0,
                owner: String::new(),
                group: String::new(),
                modified_at: jiff::Timestamp::UNIX_EPOCH,
                symlink_target: None,
            })
        };
        assert_eq!(text(FileKind::File, "0640"), "-rw-r-----");
        assert_eq!(text(FileKind::Directory, "1777"), "drwxrwxrwt");
        assert_eq!(text(FileKind::File, "6644"), "-rwSr-Sr--");
        assert_eq!(text(FileKind::Symlink, "0777"), "lrwxrwxrwx");
    }
}
