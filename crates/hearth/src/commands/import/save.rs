//! An imported set-up as a project's own: its commands as the pool's, the other scripts as the setup object's.

use hearth_api::client::Client;
use hearth_api::find::ProjectFound;
use hearth_api::pool::PatchPool;
use hearth_api::project::ProjectView;
use hearth_api::setup::{RepoSetup, SetupBody, SetupSource};
use hearth_api::values::{Branch, RepoFullName};
use hearth_import::Imported;

use crate::failure::Failure;
use crate::{hint, output};

/// Where it is saved.
pub(super) struct Target {
    client: Client,
    project: ProjectFound,
    repository: String,
    branch: String,
    has_set_up: Option<&'static str>,
}

impl Target {
    /// The project's repository that is meant: the only one, or the one of this name.
    pub(super) async fn find(client: Client, project: ProjectFound, name: &str) -> Result<Self, Failure> {
        let view: ProjectView = client.view_project(&project.id).await?;
        let is_named = |full: &str| full == name || full.rsplit('/').next() == Some(name);
        let found = match &view.repos[..] {
            [only] => Some(only),
            all => all.iter().find(|repo| is_named(&repo.repo_full_name)),
        };
        let Some(repo) = found else {
            let all: Vec<_> = view.repos.iter().map(|repo| repo.repo_full_name.as_str()).collect();
            let has = if all.is_empty() {
                "it has none".to_owned()
            } else {
                format!("it has {}", all.join(", "))
            };
            return Err(Failure::new(format!(
                "{} has no repository named {name}; {has}",
                project.name
            )));
        };
        let pool = client.get_pool(&project.id).await?;
        let of_pool = pool.config.and_then(|config| config.setup_commands).unwrap_or_default();
        let setup = client.get_setup(&project.id).await?;
        let has_set_up = if !of_pool.is_empty() {
            Some("its pool has commands")
        } else if setup.source == SetupSource::Setup {
            Some("a setup object is saved")
        } else if view.project_setup.as_ref().is_some_and(|commands| !commands.is_empty()) {
            Some("it has commands of its own")
        } else {
            None
        };
        Ok(Self {
            repository: repo.repo_full_name.clone(),
            branch: repo.branch.clone(),
            client,
            project,
            has_set_up,
        })
    }

    /// Where the repository is in VMs.
    pub(super) fn workspace(&self) -> String {
        let name = self.repository.rsplit('/').next().unwrap_or(&self.repository);
        format!("/home/{name}")
    }

    pub(super) async fn save(&self, imported: &Imported, replace: bool) -> Result<(), Failure> {
        let name = self.project.name.as_str();
        if let Some(what) = self.has_set_up.filter(|_| !replace) {
            let failure = Failure::new(format!("{name} has a set-up already: {what}"));
            return Err(failure.hint("if it may be replaced, say --replace"));
        }
        let own = imported.own_set_up(&self.workspace()).map_err(Failure::new)?;
        let count = output::count(own.commands.len() as u64, "command");
        let repository = RepoSetup {
            repository: RepoFullName::try_from(self.repository.as_str())
                .map_err(|error| Failure::new(error.to_string()))?,
            branch: Branch::try_from(self.branch.as_str()).map_err(|error| Failure::new(error.to_string()))?,
            scripts: own.scripts,
            timeouts: None,
            commands: Vec::new(),
        };
        let setup = SetupBody {
            vm_size: own.vm_size,
            repositories: vec![repository],
            hooks: None,
        };
        self.client.patch_setup(&self.project.id, &setup, false).await?;
        let pool = PatchPool {
            setup_commands: Some(Some(own.commands)),
            ..PatchPool::default()
        };
        self.client.patch_pool(&self.project.id, &pool).await?;
        output::note(&format!(
            "saved in {name}: {count} of the pool, and the setup object\n  change them: {}\n               {}",
            hint::command(["pool", "edit", name]),
            hint::command(["setup", "edit", name])
        ));
        let hooks = &imported.settings.hooks;
        if !hooks.terminals.is_empty() || !hooks.previews.is_empty() {
            output::note(
                "terminals and previews stay where they are: only a repository's own .hearth/settings.json says them",
            );
        }
        Ok(())
    }
}
