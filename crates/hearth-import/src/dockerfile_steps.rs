//! The instructions of a Dockerfile's stage as steps of the set-up, one after the other.

use crate::Fault;
use crate::base::{Base, base};
use crate::dockerfile::{Arguments, Options, Stage, argument, put_in};
use crate::draft::Draft;
use crate::files::join;
use crate::instructions::Instruction;
use crate::shell::{expanding, quote, words};

/// Folders that hold more than an application.
const SHARED: [&str; 10] = [
    "/", "/bin", "/etc", "/home", "/opt", "/root", "/srv", "/tmp", "/usr", "/var",
];

/// The state between instructions.
pub(crate) struct Steps<'a> {
    draft: &'a mut Draft,
    file: &'a str,
    options: &'a Options,
    /// The folder in the VM that files are copied from.
    context: String,
    before: Arguments,
    arguments: Arguments,
    folder: String,
    shell: Vec<String>,
    /// Where the whole repository is copied to.
    app: Option<String>,
    /// What is done as root before the next command.
    first: Vec<String>,
}

impl<'a> Steps<'a> {
    pub(crate) fn new(draft: &'a mut Draft, file: &'a str, options: &'a Options, before: Arguments) -> Self {
        let context = match options.context.as_str() {
            "" => draft.workspace.clone(),
            below => format!("{}/{below}", draft.workspace),
        };
        Self {
            draft,
            file,
            options,
            context,
            before,
            arguments: Vec::new(),
            folder: "/".to_owned(),
            shell: vec!["/bin/sh".to_owned(), "-c".to_owned()],
            app: None,
            first: Vec::new(),
        }
    }

    pub(crate) fn all(mut self, all: &[&Instruction], stages: &[Stage]) -> Result<(), Fault> {
        self.find_app(all);
        for instruction in all {
            self.one(instruction, stages)?;
        }
        Ok(())
    }

    /// The folder that the whole context is copied to is a link to it.
    fn find_app(&mut self, all: &[&Instruction]) {
        let mut folder = "/".to_owned();
        for instruction in all {
            match instruction.name {
                "WORKDIR" => folder = absolute(&folder, instruction.text.trim().trim_matches('"')),
                "COPY" | "ADD" if instruction.flag("from").is_none() && instruction.heredocs.is_empty() => {
                    let words = paths(instruction);
                    let [source, to] = &words[..] else { continue };
                    let to = absolute(&folder, to);
                    if ![".", "./"].contains(&source.as_str()) || SHARED.contains(&to.as_str()) || to.contains('$') {
                        continue;
                    }
                    let (quoted, context) = (quote(&to), quote(&self.context));
                    let place = instruction.place();
                    self.draft
                        .taken(self.file, &place, format!("{to} is the checkout, by a link"));
                    let text = format!(
                        "mkdir -p \"$(dirname {quoted})\"\n[ -L {quoted} ] || [ ! -d {quoted} ] || rmdir {quoted}\nln -sfn {context} {quoted}"
                    );
                    self.draft.run_as_root(self.file, &place, text);
                    self.app = Some(to);
                    return;
                }
                _ => {}
            }
        }
    }

    fn not(&mut self, instruction: &Instruction, why: &str) {
        self.draft.left_out(
            self.file,
            &instruction.place(),
            format!("{}: {why}", instruction.shown()),
        );
    }

    fn one(&mut self, instruction: &Instruction, stages: &[Stage]) -> Result<(), Fault> {
        let place = instruction.place();
        match instruction.name {
            "RUN" => self.run(instruction),
            "COPY" | "ADD" => self.copy(instruction, stages),
            "ENV" => self.env(instruction)?,
            "ARG" => argument(&instruction.text, self.options, &self.before, &mut self.arguments)
                .map_err(|what| Fault::new(self.file, place, what))?,
            "WORKDIR" => {
                self.folder = absolute(&self.folder, instruction.text.trim().trim_matches('"'));
                if self.app.as_ref() != Some(&self.folder) {
                    let make = format!("mkdir -p {}", expanding(&self.folder));
                    self.first.push(make);
                }
            }
            "USER" => {
                let user = instruction.text.split(':').next().unwrap_or_default().trim();
                match user {
                    "0" => self.draft.user(self.file, &place, "root"),
                    user if user.contains('$') || user.starts_with(|c: char| c.is_ascii_digit()) => {
                        self.not(instruction, "only a user with a name is taken; commands run as before");
                    }
                    user => self.draft.user(self.file, &place, user),
                }
            }
            "EXPOSE" => {
                for port in instruction.text.split_whitespace() {
                    let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
                    if !protocol.eq_ignore_ascii_case("tcp") {
                        self.not(instruction, "a preview is HTTP, over TCP");
                        continue;
                    }
                    match number.parse() {
                        Ok(port) => self.draft.preview(self.file, &place, port, None),
                        Err(_) => self.not(instruction, "it is no number"),
                    }
                }
            }
            "SHELL" => match instruction.list() {
                Some(shell) if !shell.is_empty() => self.shell = shell,
                _ => return Err(Fault::new(self.file, place, "SHELL must be a list of JSON")),
            },
            "CMD" | "ENTRYPOINT" => self.not(instruction, "what a container runs; a VM waits for a task"),
            "HEALTHCHECK" | "STOPSIGNAL" | "VOLUME" => self.not(instruction, "it is about containers"),
            "ONBUILD" => self.not(instruction, "it is for images made from this one"),
            _ => {}
        }
        Ok(())
    }

    /// Runs a text in the folder that holds, after what waits to be done before it.
    fn emit(&mut self, instruction: &Instruction, text: &str, as_user: bool) {
        let mut whole = std::mem::take(&mut self.first);
        whole.push(match as_user {
            true => self.draft.as_user(text),
            false => text.to_owned(),
        });
        self.draft
            .run_as_root(self.file, &instruction.place(), whole.join("\n"));
    }

    fn set_arguments(&self) -> String {
        let one = |(name, value): &(String, String)| format!("export {name}={}\n", expanding(value));
        self.arguments.iter().map(one).collect()
    }

    fn run(&mut self, instruction: &Instruction) {
        for (flag, value) in &instruction.flags {
            match flag.as_str() {
                "mount" => self.mount(instruction, value),
                "network" | "security" => self.not(instruction, &format!("--{flag} is left out, the rest runs")),
                _ => {}
            }
        }
        let shell = words(&self.shell);
        let command = match (instruction.list(), instruction.heredocs.first()) {
            (Some(list), _) => words(&list),
            // The text is the whole command, or what another program reads.
            (None, Some(heredoc)) => {
                let begins = instruction.text.find("<<").unwrap_or_default();
                let rest: String = instruction.text[begins..]
                    .chars()
                    .skip_while(|c| !c.is_whitespace())
                    .collect();
                let program = format!("{}{rest}", &instruction.text[..begins]);
                match (
                    program.trim(),
                    heredoc.text.strip_prefix("#!").and_then(|text| text.split_once('\n')),
                ) {
                    ("", Some((program, _))) => format!(
                        "{} /dev/stdin <<'{}'\n{}{}\n",
                        program.trim(),
                        heredoc.name,
                        heredoc.text,
                        heredoc.name
                    ),
                    ("", None) => format!("{shell} {}", quote(&heredoc.text)),
                    (_, _) => {
                        let bodies: String = instruction
                            .heredocs
                            .iter()
                            .map(|one| format!("{}{}\n", one.text, one.name))
                            .collect();
                        format!("{}\n{bodies}", instruction.text)
                    }
                }
            }
            (None, None) => format!("{shell} {}", quote(&instruction.text)),
        };
        let folder = expanding(&self.folder);
        self.draft.taken(
            self.file,
            &instruction.place(),
            format!("{} is a step", instruction.shown()),
        );
        let text = format!("{}cd {folder}\n{command}", self.set_arguments());
        self.emit(instruction, &text, true);
        let in_app = self
            .app
            .as_ref()
            .is_some_and(|app| self.folder == *app || self.folder.starts_with(&format!("{app}/")));
        if in_app {
            self.draft.is_prepared();
        }
    }

    /// Caches are not needed; files that are mounted are copied.
    fn mount(&mut self, instruction: &Instruction, value: &str) {
        let options: Vec<(&str, &str)> = value
            .split(',')
            .map(|one| one.split_once('=').unwrap_or((one, "")))
            .collect();
        let option = |names: &[&str]| {
            options
                .iter()
                .find(|(name, _)| names.contains(name))
                .map(|(_, value)| *value)
        };
        match option(&["type"]).unwrap_or("bind") {
            "bind" if option(&["from"]).is_none() => {
                let source = option(&["source", "src"]).unwrap_or(".");
                let to = option(&["target", "dst", "destination"]).unwrap_or(".");
                let to = absolute(&self.folder, to);
                match join("", source) {
                    Some(source) if !source.is_empty() => {
                        let copy = self.copying(&[source], &to);
                        self.first.push(copy);
                    }
                    _ => {}
                }
            }
            "cache" | "tmpfs" => {}
            "secret" | "ssh" => {
                self.not(
                    instruction,
                    "its secret is not there; give it as a variable with `hearth env set`",
                );
            }
            _ => self.not(instruction, "what it mounts is not there"),
        }
    }

    fn copy(&mut self, instruction: &Instruction, stages: &[Stage]) {
        if let Some(from) = instruction.flag("from") {
            let is_stage =
                stages.iter().any(|stage| stage.name.as_deref() == Some(from)) || from.parse::<usize>().is_ok();
            match base(&put_in(from, &self.before, false).unwrap_or_default()) {
                Base::Debian(Some((tool, version))) if !is_stage => {
                    self.draft
                        .need(self.file, &instruction.place(), tool, version.as_deref());
                }
                _ if is_stage => self.not(instruction, "what another stage makes is not built"),
                _ => self.not(instruction, "no registry is asked for the image"),
            }
            return;
        }
        let all = paths(instruction);
        let Some((to, sources)) = all.split_last() else {
            return self.not(instruction, "it names no place to copy to");
        };
        let is_folder = to.ends_with('/') || sources.len() > 1;
        let mut target = absolute(&self.folder, to);
        if is_folder && !target.ends_with('/') {
            target.push('/');
        }
        let mut texts = Vec::new();
        if !instruction.heredocs.is_empty() {
            for heredoc in &instruction.heredocs {
                let place = if target.ends_with('/') {
                    format!("{target}{}", heredoc.name)
                } else {
                    target.clone()
                };
                let end = if heredoc.is_literal {
                    format!("'{}'", heredoc.name)
                } else {
                    heredoc.name.clone()
                };
                texts.push(format!(
                    "mkdir -p \"$(dirname {0})\"\ncat >{0} <<{end}\n{1}{2}",
                    expanding(&place),
                    heredoc.text,
                    heredoc.name
                ));
            }
        } else {
            let mut own = Vec::new();
            for source in sources {
                let is_url = source.starts_with("http://") || source.starts_with("https://");
                if instruction.name == "ADD" && (is_url || source.starts_with("git@")) {
                    let name = source.rsplit('/').next().unwrap_or_default();
                    if !is_url || name.ends_with(".git") || source.contains(".git#") {
                        return self.not(instruction, "it is a git repository; give it to the project");
                    }
                    let place = if target.ends_with('/') {
                        format!("{target}{name}")
                    } else {
                        target.clone()
                    };
                    let place = expanding(&place);
                    texts.push(format!(
                        "mkdir -p \"$(dirname {place})\"\ncurl -fsSL -o {place} {}",
                        expanding(source)
                    ));
                } else {
                    match join("", source.trim_start_matches('/')) {
                        Some(path) if path.is_empty() => own.push(".".to_owned()),
                        Some(path) => own.push(path),
                        None => return self.not(instruction, "it leads out of the repository"),
                    }
                }
            }
            let is_archive = |path: &String| {
                instruction.name == "ADD"
                    && [".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2"]
                        .iter()
                        .any(|end| path.ends_with(end))
            };
            let (archives, plain): (Vec<_>, Vec<_>) = own.into_iter().partition(is_archive);
            for archive in archives {
                let (to, context) = (expanding(&target), quote(&self.context));
                texts.push(format!("mkdir -p {to}\ntar -C {to} -xf {context}/{}", quote(&archive)));
            }
            // What is in the checkout's own folder is there.
            let is_there = self.app.as_deref() == Some(target.trim_end_matches('/'))
                && plain.iter().all(|path| !path.contains('/'));
            if is_there && texts.is_empty() {
                self.draft.taken(
                    self.file,
                    &instruction.place(),
                    format!("{}: it is there", instruction.shown()),
                );
                return;
            }
            if !plain.is_empty() {
                texts.push(self.copying(&plain, &target));
            }
        }
        let in_app = self
            .app
            .as_ref()
            .is_some_and(|app| target.trim_end_matches('/').starts_with(app.as_str()));
        for (flag, value) in &instruction.flags {
            match flag.as_str() {
                // The checkout stays root's: claims move it.
                "chown" if !in_app => texts.push(format!("chown -R {} {}", expanding(value), expanding(&target))),
                "chmod" => texts.push(format!("chmod -R {} {}", quote(value), expanding(&target))),
                "chown" | "link" | "parents" => {}
                _ => self.not(instruction, &format!("--{flag} is left out, the rest is copied")),
            }
        }
        self.draft.taken(
            self.file,
            &instruction.place(),
            format!("{} is a step", instruction.shown()),
        );
        let text = format!("{}{}", self.set_arguments(), texts.join("\n"));
        self.emit(instruction, &text, false);
    }

    /// Copies as Docker does: of a folder what is in it.
    fn copying(&self, sources: &[String], to: &str) -> String {
        let to_quoted = expanding(to);
        // Patterns of files are the shell's, too.
        let word = |path: &String| match path.contains(['*', '?', '['])
            && !path.contains(|c: char| " \t'\"$`\\;&|<>(){}~#!".contains(c))
        {
            true => path.clone(),
            false => quote(path),
        };
        let sources: Vec<String> = sources.iter().map(word).collect();
        let make = match to.ends_with('/') {
            true => format!("mkdir -p {to_quoted}"),
            false => format!("mkdir -p \"$(dirname {to_quoted})\""),
        };
        format!(
            "cd {}\n{make}\nfor from in {}; do\n  if [ -d \"$from\" ]; then\n    mkdir -p {to_quoted}\n    \
             [ \"$from\" -ef {to_quoted} ] || cp -a \"$from/.\" {to_quoted}\n  else\n    to={to_quoted}\n    \
             [ ! -d \"$to\" ] || to=\"$to/$(basename \"$from\")\"\n    \
             [ \"$from\" -ef \"$to\" ] || cp -a \"$from\" \"$to\"\n  fi\ndone",
            quote(&self.context),
            sources.join(" ")
        )
    }

    fn env(&mut self, instruction: &Instruction) -> Result<(), Fault> {
        let place = instruction.place();
        let text = instruction.text.trim();
        let first = text.split_whitespace().next().unwrap_or_default();
        let pairs: Arguments = if first.contains('=') {
            let words = shlex::split(text).ok_or_else(|| Fault::new(self.file, place.clone(), "a quote has no end"))?;
            let pair = |word: String| match word.split_once('=') {
                Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
                None => Err(Fault::new(self.file, place.clone(), "ENV must be NAME=value")),
            };
            words.into_iter().map(pair).collect::<Result<_, _>>()?
        } else {
            let (name, value) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
            vec![(name.to_owned(), value.trim().to_owned())]
        };
        for (name, value) in pairs {
            // Build arguments are there only while the image is built, so their values are put in.
            let value = put_in(&value, &self.arguments, true);
            let value = value.map_err(|what| Fault::new(self.file, place.clone(), what))?;
            self.draft.expanding_variable(self.file, &place, &name, &value);
        }
        Ok(())
    }
}

/// What COPY and ADD name: sources, and where they go.
fn paths(instruction: &Instruction) -> Vec<String> {
    let all = instruction
        .list()
        .unwrap_or_else(|| instruction.text.split_whitespace().map(str::to_owned).collect());
    all.into_iter().filter(|word| !word.starts_with("<<")).collect()
}

fn absolute(folder: &str, path: &str) -> String {
    let ends = if path.len() > 1 && path.ends_with('/') { "/" } else { "" };
    let all = if path.starts_with('/') || path.starts_with('$') {
        path.to_owned()
    } else {
        format!("{folder}/{path}")
    };
    let mut names: Vec<&str> = Vec::new();
    for name in all.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                names.pop();
            }
            name => names.push(name),
        }
    }
    let joined = names.join("/");
    match (all.starts_with('/'), joined.is_empty()) {
        (_, true) => "/".to_owned(),
        (true, false) => format!("/{joined}{ends}"),
        (false, false) => format!("{joined}{ends}"),
    }
}
