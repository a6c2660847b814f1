//! What did not travel, as it stands at the end of a stream.

use std::fmt::Display;
use std::io::{self, Read, Write};
use std::path::Path;

use tar::{Builder, Entry, EntryType, Header, PaxExtensions};

/// How many are named; the others are counted.
const MAX_NAMED: usize = 50;
/// How long one of them may be.
const MAX_TEXT: usize = 1024;
/// The keys of the pax header.
const LEFT_OUT: &str = "HEARTH.leftOut";
const FAILED: &str = "HEARTH.failed";
const NAMED: &str = "HEARTH.reason.";
/// The most that is read of such a header.
const MAX_HEADER: u64 = 256 * 1024;

/// What did not travel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Skipped {
    /// How many entries that are no files, folders or links, or that were not wanted.
    pub left_out: u64,
    /// How many that could not be read, or not all of them.
    pub failed: u64,
    /// The first of both, each a path and the reason.
    pub named: Vec<String>,
}

impl Skipped {
    pub(crate) fn leave_out(&mut self, path: &Path, why: impl Display) {
        self.left_out += 1;
        self.name(format!("{}: {why}", path.display()));
    }

    pub(crate) fn fail(&mut self, path: &Path, why: impl Display) {
        self.failed += 1;
        self.name(format!("{}: {why}", path.display()));
    }

    fn name(&mut self, text: String) {
        if self.named.len() < MAX_NAMED {
            self.named.push(text.chars().take(MAX_TEXT).collect());
        }
    }

    /// Adds what another one holds.
    pub(crate) fn join(&mut self, other: Self) {
        self.left_out = self.left_out.saturating_add(other.left_out);
        self.failed = self.failed.saturating_add(other.failed);
        other.named.into_iter().for_each(|text| self.name(text));
    }

    /// Writes it as a global pax header, when there is anything to say.
    pub(crate) fn write<W: Write>(&self, to: &mut Builder<W>) -> io::Result<()> {
        if self.named.is_empty() {
            return Ok(());
        }
        let mut records = record(LEFT_OUT, &self.left_out.to_string());
        records.push_str(&record(FAILED, &self.failed.to_string()));
        for (number, text) in self.named.iter().enumerate() {
            // A record ends with its line.
            records.push_str(&record(&format!("{NAMED}{number}"), &text.replace('\n', "\\n")));
        }
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XGlobalHeader);
        header.set_path("pax_global_header")?;
        header.set_mode(0o644);
        header.set_size(records.len() as u64);
        header.set_cksum();
        to.append(&header, records.as_bytes())
    }

    /// Reads one; a header of somebody else says nothing.
    pub(crate) fn read<R: Read>(from: &mut Entry<'_, R>) -> io::Result<Self> {
        let mut bytes = Vec::new();
        from.take(MAX_HEADER).read_to_end(&mut bytes)?;
        let mut skipped = Self::default();
        for record in PaxExtensions::new(&bytes).flatten() {
            let (Ok(key), Ok(value)) = (record.key(), record.value()) else {
                continue;
            };
            if key == LEFT_OUT {
                skipped.left_out = value.parse().unwrap_or_default();
            } else if key == FAILED {
                skipped.failed = value.parse().unwrap_or_default();
            } else if key.starts_with(NAMED) && skipped.named.len() < MAX_NAMED {
                skipped.named.push(value.chars().take(MAX_TEXT).collect());
            }
        }
        Ok(skipped)
    }
}

/// `LENGTH KEY=VALUE\n`, where the length is that of all of it.
fn record(key: &str, value: &str) -> String {
    let rest = format!(" {key}={value}\n");
    let mut length = rest.len();
    while length != rest.len() + length.to_string().len() {
        length = rest.len() + length.to_string().len();
    }
    format!("{length}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        assert_eq!(record("a", "b"), "6 a=b\n");
        let value = "x".repeat(93);
        assert_eq!(record("a", &value).len(), 99);
        let value = "x".repeat(94);
        let record = record("a", &value);
        assert_eq!(record.len().to_string(), record.split(' ').next().unwrap());
    }
}
