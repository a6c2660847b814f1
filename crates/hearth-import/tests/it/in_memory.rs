//! A repository in memory, written down as one text: `-- path --` begins a file.

use std::collections::BTreeMap;

use hearth_import::{Entry, Files, Kind};

#[derive(Default)]
pub struct InMemory {
    pub files: BTreeMap<String, Vec<u8>>,
    /// Links and what else is no file.
    pub others: BTreeMap<String, Kind>,
}

impl InMemory {
    pub fn of(files: &[(&str, &[u8])]) -> Self {
        let files = files
            .iter()
            .map(|(path, content)| ((*path).to_owned(), content.to_vec()));
        Self {
            files: files.collect(),
            others: BTreeMap::new(),
        }
    }

    pub fn parse(text: &str) -> Self {
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut current = None;
        for line in text.split_inclusive('\n') {
            let path = line
                .trim_end()
                .strip_prefix("-- ")
                .and_then(|line| line.strip_suffix(" --"));
            match (path, &current) {
                (Some(path), _) => {
                    files.insert(path.to_owned(), Vec::new());
                    current = Some(path.to_owned());
                }
                (None, Some(path)) => files.get_mut(path).unwrap().extend(line.as_bytes()),
                (None, None) => panic!("no file begins before {line}"),
            }
        }
        Self {
            files,
            others: BTreeMap::new(),
        }
    }
}

impl Files for InMemory {
    fn list(&self, folder: &str) -> Result<Vec<Entry>, String> {
        let below = |path: &str| match folder {
            "" => Some(path.to_owned()),
            folder => path.strip_prefix(folder)?.strip_prefix('/').map(str::to_owned),
        };
        let files = self
            .files
            .iter()
            .map(|(path, content)| (path, Kind::File(content.len() as u64)));
        let others = self.others.iter().map(|(path, kind)| (path, *kind));
        let mut entries = BTreeMap::new();
        for (path, kind) in files.chain(others) {
            let Some(path) = below(path) else { continue };
            match path.split_once('/') {
                Some((folder, _)) => entries.insert(folder.to_owned(), Kind::Folder),
                None => entries.insert(path, kind),
            };
        }
        Ok(entries.into_iter().map(|(name, kind)| Entry { name, kind }).collect())
    }

    fn read(&self, path: &str) -> Result<Vec<u8>, String> {
        self.files
            .get(path)
            .cloned()
            .ok_or_else(|| format!("{path} is not there"))
    }
}
