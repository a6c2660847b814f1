//! A setup object that a person wrote: nearly all of it may be left out, and everything that is wrong with it is said at once.

use hearth_api::project::Repo;
use hearth_api::setup::SetupBody;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::json_file::JsonFile;
use crate::output;

/// The scripts of a repository; one that is left out does not run.
const SCRIPTS: [&str; 3] = ["initialize", "updateAfterCheckout", "startup"];
/// The branch of a repository of which neither the file nor the project says one.
const DEFAULT_BRANCH: &str = "main";

/// A setup object and where everything in it stands.
#[derive(Debug)]
pub(super) struct SetupFile {
    /// The text it was read from.
    pub(super) file: JsonFile,
    /// What it says.
    pub(super) body: SetupBody,
    /// Which of its repositories say no branch.
    without_branch: Vec<usize>,
}

impl SetupFile {
    /// Reads a setup object, or what `hearth setup show --json` prints.
    pub(super) fn read(name: &str, text: &str) -> Result<Self, Failure> {
        let with_help = |failure: Failure| failure.hint("see `hearth setup save --help`");
        let mut file = JsonFile::parse(name, text, "repositories", "setup").map_err(with_help)?;
        let without_branch = fill_in(&mut file.value);
        file.check("SetupBody");
        file.finish("setup object").map_err(with_help)?;
        if !file.strange().is_empty() {
            // The documented service takes more than we know.
            output::note(&format!(
                "note: Hearth does not know and leaves out: {}",
                file.strange().join("; ")
            ));
        }
        let body = serde_json::from_value(file.value.clone())
            .map_err(|error| with_help(Failure::usage(format!("{name} holds no setup object: {error}"))))?;
        Ok(Self {
            file,
            body,
            without_branch,
        })
    }

    pub(super) fn lacks_branches(&self) -> bool {
        !self.without_branch.is_empty()
    }

    /// Repositories that say no branch keep the project's.
    pub(super) fn take_branches(&mut self, repos: &[Repo]) -> Result<(), Failure> {
        for at in &self.without_branch {
            let Some(repo) = self.body.repositories.get_mut(*at) else {
                continue;
            };
            if let Some(known) = repos.iter().find(|known| repo.repository == known.repo_full_name) {
                let refused = |fault| Failure::new(format!("the project's branch of {} {fault}", repo.repository));
                repo.branch = known.branch.parse().map_err(refused)?;
            }
        }
        Ok(())
    }
}

/// Adds what may be left out; the repositories that say no branch.
fn fill_in(value: &mut Value) -> Vec<usize> {
    let mut without_branch = Vec::new();
    let repositories = value.get_mut("repositories").and_then(Value::as_array_mut);
    for (at, repository) in repositories.into_iter().flatten().enumerate() {
        let Some(repository) = repository.as_object_mut() else {
            continue;
        };
        repository.entry("commands").or_insert_with(|| json!([]));
        let scripts = repository.entry("scripts").or_insert_with(|| json!({}));
        if let Some(scripts) = scripts.as_object_mut() {
            for name in SCRIPTS {
                scripts.entry(name).or_insert(Value::Null);
            }
        }
        if !repository.contains_key("branch") {
            repository.insert("branch".to_owned(), json!(DEFAULT_BRANCH));
            without_branch.push(at);
        }
    }
    without_branch
}
