//! A setup object that a person wrote: nearly all of it may be left out, and everything that is wrong with it is said at once.

use hearth_api::project::Repo;
use hearth_api::setup::SetupBody;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::json_file::JsonFile;
use crate::text::clean_line;
use crate::{hint, output};

/// The scripts of a repository; one that is left out does not run.
const SCRIPTS: [&str; 3] = ["initialize", "updateAfterCheckout", "startup"];
/// What `hearth setup show --json` prints beside the setup object.
const BESIDE: [&str; 2] = ["source", "legacyHooks"];
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
    /// Those of them that keep the project's, and which that is.
    kept: Vec<String>,
}

impl SetupFile {
    /// Reads a setup object, or what `hearth setup show --json` prints.
    pub(super) fn read(name: &str, text: &str) -> Result<Self, Failure> {
        let with_help = |failure: Failure| failure.hint("see `hearth setup save --help`");
        let mut file = JsonFile::parse(name, text, Some(("repositories", "setup", &BESIDE))).map_err(with_help)?;
        let without_branch = fill_in(&mut file.value);
        file.check("SetupBody");
        file.finish("setup object").map_err(with_help)?;
        let body = serde_json::from_value(file.value.clone())
            .map_err(|error| with_help(Failure::usage(format!("{name} holds no setup object: {error}"))))?;
        Ok(Self {
            file,
            body,
            without_branch,
            kept: Vec::new(),
        })
    }

    pub(super) fn lacks_branches(&self) -> bool {
        !self.without_branch.is_empty()
    }

    /// Repositories that say no branch keep the project's. Which those are is told once the file is saved.
    pub(super) fn take_branches(&mut self, repos: &[Repo]) -> Result<(), Failure> {
        self.kept.clear();
        for at in &self.without_branch {
            let Some(repo) = self.body.repositories.get_mut(*at) else {
                continue;
            };
            if let Some(known) = repos.iter().find(|known| repo.repository == known.repo_full_name) {
                let refused = |fault| Failure::new(format!("the project's branch of {} {fault}", repo.repository));
                repo.branch = known.branch.parse().map_err(refused)?;
                self.kept
                    .push(clean_line(&format!("{}@{}", known.repo_full_name, known.branch)));
            }
        }
        Ok(())
    }

    /// Says which branches are as they were before, because the file names none.
    pub(super) fn tell_kept(&self, project: &str) {
        if !self.kept.is_empty() {
            let edit = hint::command(["project", "edit", project]);
            output::note(&format!(
                "note: branch kept, since none is given: {} (`branch` in the file changes it, and so does `{edit}`)",
                self.kept.join(", ")
            ));
        }
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
