//! What a repository already says about its set-up (`devcontainer.json`, `copilot-setup-steps.yml`, `.cursor/environment.json`, a
//! Dockerfile, `mise.toml`, lock files), read into what its own `.hearth/settings.json` would say. Pure: the caller hands in the files,
//! no registry is asked and nothing is run. Every key that was read is told: taken and how, or not taken and why.

mod base;
mod copilot;
mod cursor;
mod devcontainer;
mod devcontainer_keys;
mod dockerfile;
mod dockerfile_steps;
mod draft;
mod feature;
mod files;
mod formats;
mod instructions;
mod lock_files;
mod node;
mod own;
mod packages;
mod shell;
mod tools;

use hearth_api::settings::Settings;

pub use files::{Entry, Files, Kind, MAX_ENTRIES, MAX_FILE, MAX_FILES};
pub use formats::JSONC;
pub use own::OwnSetUp;
pub use shell::expanding;

use draft::Draft;
use files::Reader;

/// Counts up when the same files begin to be read into something else.
pub const IMPORT_VERSION: u32 = 1;

/// What was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    /// The files that it was read from, the deciding one first.
    pub files: Vec<String>,
    /// What the repository's own settings file would say.
    pub settings: Settings,
    /// Where each command of `settings.hooks.setup` comes from, in the same order.
    pub sources: Vec<Source>,
    /// What the files say a machine must have.
    pub needs: Needs,
    /// What was taken and what was not, in order.
    pub notes: Vec<Note>,
}

/// Where a command comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The file.
    pub file: String,
    /// The key in it, or its line.
    pub place: String,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}", self.place, self.file)
    }
}

/// What a machine must have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    pub cpus: Option<u64>,
    pub memory_mib: Option<u64>,
    pub disk_gib: Option<u64>,
}

impl Needs {
    /// Whether nothing is said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What became of one thing that a file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The file.
    pub file: String,
    /// The key in it, or its line.
    pub place: String,
    /// What became of it.
    pub outcome: Outcome,
}

/// Whether something was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// How.
    Taken(String),
    /// Why not.
    NotTaken(String),
}

impl Note {
    /// Whether it was taken.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        matches!(self.outcome, Outcome::Taken(_))
    }
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { place, outcome, .. } = self;
        match outcome {
            Outcome::Taken(how) => write!(f, "{place}: {how}"),
            Outcome::NotTaken(why) => write!(f, "{place}: not taken: {why}"),
        }
    }
}

impl Imported {
    /// Whether there was nothing to read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.notes.is_empty() && self.settings == Settings::default()
    }

    /// What was taken, or what was not, a line each.
    #[must_use]
    pub fn told(&self, taken: bool) -> Vec<String> {
        let notes = self.notes.iter().filter(|note| note.is_taken() == taken);
        notes.map(|note| format!("{}: {note}", note.file)).collect()
    }

    /// What was taken and what was not, file by file, as text for people.
    #[must_use]
    pub fn report(&self) -> String {
        let mut text = String::new();
        let mut file = "";
        for note in &self.notes {
            if note.file != file {
                file = &note.file;
                text.push_str(file);
                text.push('\n');
            }
            let sign = if note.is_taken() { '+' } else { '-' };
            text.push_str(&format!("  {sign} {note}\n"));
        }
        text
    }
}

/// Why a file cannot be read: which, where and what.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}{}{place}: {what}", if place.is_empty() { "" } else { ", " })]
pub struct Fault {
    /// The file.
    pub file: String,
    /// The key in it, or line and column.
    pub place: String,
    /// What is wrong with it.
    pub what: String,
}

impl Fault {
    fn new(file: &str, place: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            place: place.into(),
            what: what.into(),
        }
    }
}

/// Reads the repository whose checkout is `workspace` in its VMs.
pub fn read(files: &dyn Files, workspace: &str) -> Result<Imported, Fault> {
    let mut reader = Reader::new(files);
    let mut draft = Draft::new(workspace);
    let mut decided: Option<String> = None;
    for (find, take) in FORMATS {
        let Some(file) = find(&mut reader)? else { continue };
        if draft.has(&file) {
            continue;
        }
        if let Some(decided) = &decided {
            draft.left_out(&file, "the file", format!("{decided} is read in its place"));
            continue;
        }
        if take(&mut reader, &mut draft, &file)? {
            decided = Some(file);
        }
    }
    if !draft.prepares_checkout() {
        lock_files::take(&mut reader, &mut draft)?;
    }
    draft.finish()
}

type Find = fn(&mut Reader<'_>) -> Result<Option<String>, Fault>;
/// Whether the file decides the set-up; one that cannot be used leaves that to the next.
type Take = fn(&mut Reader<'_>, &mut Draft, &str) -> Result<bool, Fault>;

/// In order: the first that is there and can be used decides.
const FORMATS: [(Find, Take); 4] = [
    (devcontainer::find, devcontainer::take),
    (copilot::find, copilot::take),
    (cursor::find, cursor::take),
    (dockerfile::find, dockerfile::take),
];
