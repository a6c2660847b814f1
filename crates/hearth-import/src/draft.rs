//! The set-up while it is put together: what was read is added in order, with a note for each key.

use hearth_api::settings::{Hooks, Preview, Settings, SetupHook, Terminal};
use hearth_api::values::{CommandText, Name};

use crate::packages::{Tool, Wanted};
use crate::shell::{expanding, keep_variable, quote, shown};
use crate::{Fault, Imported, Needs, Note, Outcome, Source};

/// So many commands a set-up may have.
pub(crate) const MAX_COMMANDS: usize = 200;
/// So many keys are told of.
const MAX_NOTES: usize = 1000;

/// What was read so far.
pub(crate) struct Draft {
    /// The checkout in the VM.
    pub(crate) workspace: String,
    files: Vec<String>,
    apt: Vec<(Source, String)>,
    tools: Vec<(Source, Wanted)>,
    commands: Vec<(Source, String)>,
    update: Vec<String>,
    startup: Vec<String>,
    terminals: Vec<Terminal>,
    previews: Vec<Preview>,
    needs: Needs,
    notes: Vec<Note>,
    user: Option<String>,
    prepares_checkout: bool,
}

fn source(file: &str, place: &str) -> Source {
    Source {
        file: file.to_owned(),
        place: place.to_owned(),
    }
}

impl Draft {
    pub(crate) fn new(workspace: &str) -> Self {
        Self {
            workspace: workspace.to_owned(),
            files: Vec::new(),
            apt: Vec::new(),
            tools: Vec::new(),
            commands: Vec::new(),
            update: Vec::new(),
            startup: Vec::new(),
            terminals: Vec::new(),
            previews: Vec::new(),
            needs: Needs::default(),
            notes: Vec::new(),
            user: None,
            prepares_checkout: false,
        }
    }

    /// The folder's own name.
    pub(crate) fn workspace_name(&self) -> &str {
        self.workspace.rsplit('/').next().unwrap_or_default()
    }

    /// Whether something runs that prepares the checkout: then lock files say nothing more.
    pub(crate) fn prepares_checkout(&self) -> bool {
        self.prepares_checkout
    }

    /// The file was read.
    pub(crate) fn file(&mut self, file: &str) {
        if !self.has(file) {
            self.files.push(file.to_owned());
        }
    }

    /// Whether the file was read.
    pub(crate) fn has(&self, file: &str) -> bool {
        self.files.iter().any(|known| known == file)
    }

    fn note(&mut self, file: &str, place: &str, outcome: Outcome) {
        if self.notes.len() < MAX_NOTES {
            self.notes.push(Note {
                file: file.to_owned(),
                place: place.to_owned(),
                outcome,
            });
        }
    }

    /// Something is taken.
    pub(crate) fn taken(&mut self, file: &str, place: &str, how: impl Into<String>) {
        self.file(file);
        self.note(file, place, Outcome::Taken(how.into()));
    }

    /// Something is not taken.
    pub(crate) fn left_out(&mut self, file: &str, place: &str, why: impl Into<String>) {
        self.note(file, place, Outcome::NotTaken(why.into()));
    }

    /// Debian packages.
    pub(crate) fn apt(&mut self, file: &str, place: &str, packages: &[&str]) {
        for package in packages {
            if !self.apt.iter().any(|(_, known)| known == package) {
                self.apt.push((source(file, place), (*package).to_owned()));
            }
        }
    }

    /// A tool that commands take for granted. The first place that names a version decides.
    pub(crate) fn need(&mut self, file: &str, place: &str, tool: Tool, version: Option<&str>) {
        let wanted = Wanted::new(tool, version);
        let at = self.tools.iter().position(|(_, known)| known.tool == tool);
        match at.map(|at| &mut self.tools[at]) {
            Some((_, known)) if known.version.is_some() || wanted.version.is_none() => {
                let how = format!("{}, as said above", known.shown());
                self.taken(file, place, how);
                return;
            }
            Some(known) => *known = (source(file, place), wanted.clone()),
            None => self.tools.push((source(file, place), wanted.clone())),
        }
        self.taken(file, place, wanted.how());
        self.apt(file, place, wanted.packages());
    }

    /// A command of the set-up, run in the checkout.
    pub(crate) fn run(&mut self, file: &str, place: &str, text: &str) {
        self.taken(file, place, format!("{} runs in the set-up", shown(text)));
        self.run_quietly(file, place, text);
        self.prepares_checkout = true;
    }

    /// The same, without a note of its own, and of no account for whether the checkout is prepared.
    pub(crate) fn run_quietly(&mut self, file: &str, place: &str, text: &str) {
        let text = self.as_user(text);
        self.run_as_root(file, place, text);
    }

    /// What ran so far prepares the checkout.
    pub(crate) fn is_prepared(&mut self) {
        self.prepares_checkout = true;
    }

    /// A command that is run as root whatever user the files name.
    pub(crate) fn run_as_root(&mut self, file: &str, place: &str, text: String) {
        // More of them are a fault, and need not be kept for it.
        let text = if self.commands.len() > MAX_COMMANDS {
            String::new()
        } else {
            text
        };
        self.commands.push((source(file, place), text));
    }

    /// A command that runs when the VM becomes ready.
    pub(crate) fn start(&mut self, file: &str, place: &str, text: &str) {
        self.taken(file, place, format!("{} runs when the VM becomes ready", shown(text)));
        let text = self.as_user(text);
        self.startup.push(text);
    }

    /// A command that runs at a claim that moved the checkout.
    pub(crate) fn update(&mut self, text: &str) {
        let text = self.as_user(text);
        if self.user.is_some() && self.update.is_empty() {
            self.update.push("chmod -R a+rwX .".to_owned());
        }
        self.update.push(text);
    }

    /// A variable that every program in the VM has.
    pub(crate) fn variable(&mut self, file: &str, place: &str, name: &str, value: &str) {
        if !crate::shell::is_name(name) {
            self.left_out(
                file,
                place,
                "its name holds other characters than letters, digits and `_`",
            );
        } else if value.contains('\n') {
            let why = "its value has several lines, which /etc/environment cannot hold; set it with `hearth env set`";
            self.left_out(file, place, why);
        } else if value.contains('\'') {
            self.left_out(
                file,
                place,
                "its value holds a single quote; set it with `hearth env set`",
            );
        } else {
            self.taken(
                file,
                place,
                format!("{name} is set for every program in the VM, in /etc/environment"),
            );
            let text = keep_variable(name, &quote(value));
            self.run_as_root(file, place, text);
        }
    }

    /// The same, where the value may name other variables.
    pub(crate) fn expanding_variable(&mut self, file: &str, place: &str, name: &str, value: &str) {
        if !value.contains('$') || !crate::shell::is_name(name) || value.contains('\n') {
            self.variable(file, place, name, value);
            return;
        }
        self.taken(
            file,
            place,
            format!("{name} is set for every program in the VM, in /etc/environment"),
        );
        self.run_as_root(file, place, keep_variable(name, &expanding(value)));
    }

    /// From here on commands run as this user, who is made when there is none.
    pub(crate) fn user(&mut self, file: &str, place: &str, name: &str) {
        let workspace = quote(&self.workspace);
        if name == "root" {
            self.user = None;
            return;
        }
        if !crate::shell::is_user(name) {
            self.left_out(
                file,
                place,
                "it is no name that Debian gives a user; commands run as root",
            );
            return;
        }
        self.taken(
            file,
            place,
            format!("commands run as {name}, made with the right to use sudo"),
        );
        // The checkout is nobody's home.
        let home = match self.workspace == format!("/home/{name}") {
            true => format!("mkdir -p /var/home && useradd --home-dir /var/home/{name}"),
            false => "useradd".to_owned(),
        };
        let text = format!(
            "id -u {name} >/dev/null 2>&1 || {{ {home} --create-home --shell /bin/bash {name}; }}\n\
             echo '{name} ALL=(ALL) NOPASSWD:ALL' >/etc/sudoers.d/{name}\n\
             git config --system --add safe.directory {workspace}\n\
             chmod -R a+rwX {workspace}"
        );
        self.run_as_root(file, place, text);
        self.user = Some(name.to_owned());
    }

    /// Who commands run as, when that is not root.
    pub(crate) fn user_name(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The command as the named user runs it.
    pub(crate) fn as_user(&self, text: &str) -> String {
        match &self.user {
            None => text.to_owned(),
            Some(name) => format!(
                "runuser -u {name} -- env HOME=\"$(getent passwd {name} | cut -d: -f6)\" USER={name} LOGNAME={name} \
                 bash -eo pipefail -c {}",
                quote(text)
            ),
        }
    }

    /// A port to show.
    pub(crate) fn preview(&mut self, file: &str, place: &str, port: u64, label: Option<&str>) {
        let port = u16::try_from(port).ok().and_then(std::num::NonZeroU16::new);
        let Some(port) = port else {
            self.left_out(file, place, "it is no TCP port");
            return;
        };
        let name = label.and_then(|label| Name::try_from(label).ok());
        let name = name.or_else(|| Name::try_from(format!("port {port}")).ok());
        let Some(name) = name else { return };
        if !self.previews.iter().any(|known| known.port == port) {
            self.previews.push(Preview { name, port });
        }
        self.taken(file, place, format!("a preview of port {port}"));
    }

    /// A terminal that is open from the start.
    pub(crate) fn terminal(&mut self, file: &str, place: &str, name: &str, command: &str) -> Result<(), Fault> {
        let invalid = |error: hearth_api::values::Invalid| Fault::new(file, place, error.to_string());
        let command_text = CommandText::try_from(command).map_err(invalid)?;
        let name = Name::try_from(name).map_err(invalid)?;
        self.taken(
            file,
            place,
            format!("{} runs as the terminal {name} of every claimed VM", shown(command)),
        );
        self.terminals.push(Terminal {
            name,
            command: command_text,
            readonly: false,
        });
        Ok(())
    }

    /// What a machine must have.
    pub(crate) fn needs(&mut self, change: impl FnOnce(&mut Needs)) {
        change(&mut self.needs);
    }

    /// The set-up.
    pub(crate) fn finish(self) -> Result<Imported, Fault> {
        let mut all = Vec::new();
        if let Some((from, _)) = self.apt.first() {
            let packages: Vec<_> = self.apt.iter().map(|(_, package)| package.as_str()).collect();
            all.push((from.clone(), crate::packages::apt(&packages)));
        }
        // What is installed through another tool comes after it.
        let mut tools: Vec<_> = self.tools.iter().collect();
        tools.sort_by_key(|(_, wanted)| wanted.tool.order());
        for (from, wanted) in tools {
            if let Some(command) = wanted.command() {
                all.push((from.clone(), command));
            }
        }
        all.extend(self.commands);
        if let Some((from, _)) = all.get(MAX_COMMANDS) {
            let what = format!(
                "the set-up would have {} commands; at most {MAX_COMMANDS} are taken",
                all.len()
            );
            return Err(Fault::new(&from.file, from.place.clone(), what));
        }
        let mut setup = Vec::new();
        let mut sources = Vec::new();
        for (from, command) in all {
            let command = command_text(&from, command)?;
            setup.push(SetupHook::Text(command));
            sources.push(from);
        }
        let first = self.files.first().map_or("", String::as_str);
        let joined = |commands: Vec<String>, place: &str| match commands.is_empty() {
            true => Ok(None),
            false => command_text(&source(first, place), commands.join("\n")).map(Some),
        };
        let settings = Settings {
            hooks: Hooks {
                setup,
                update_after_checkout: joined(self.update, "what runs after a checkout")?,
                startup: joined(self.startup, "what runs at the start")?,
                terminals: self.terminals,
                previews: self.previews,
                ..Hooks::default()
            },
        };
        Ok(Imported {
            files: self.files,
            settings,
            sources,
            needs: self.needs,
            notes: self.notes,
        })
    }
}

fn command_text(from: &Source, command: String) -> Result<CommandText, Fault> {
    CommandText::try_from(command).map_err(|error| Fault::new(&from.file, from.place.clone(), error.to_string()))
}
