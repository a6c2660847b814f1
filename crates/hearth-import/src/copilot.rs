//! `copilot-setup-steps.yml`: the steps of the job of that name. Well-known actions that set up a tool are packages; what an action does
//! else is not known, and none is fetched.

use serde_json::Value;

use crate::draft::{Draft, MAX_COMMANDS};
use crate::files::Reader;
use crate::node::Node;
use crate::packages::Tool;
use crate::shell::{expanding, is_name, quote};
use crate::{Fault, formats, tools};

const JOB: &str = "copilot-setup-steps";
const PLACES: [&str; 2] = [
    ".github/workflows/copilot-setup-steps.yml",
    ".github/workflows/copilot-setup-steps.yaml",
];

/// Actions that set up a tool: the tool, and the input that names its version.
const SETS_UP: [(&str, Tool, &str); 19] = [
    ("actions/setup-node", Tool::Node, "node-version"),
    ("actions/setup-python", Tool::Python, "python-version"),
    ("actions/setup-go", Tool::Go, "go-version"),
    ("actions/setup-java", Tool::Java, "java-version"),
    ("astral-sh/setup-uv", Tool::Uv, "version"),
    ("pnpm/action-setup", Tool::Pnpm, "version"),
    ("oven-sh/setup-bun", Tool::Bun, "bun-version"),
    ("denoland/setup-deno", Tool::Deno, "deno-version"),
    ("ruby/setup-ruby", Tool::Ruby, "ruby-version"),
    ("shivammathur/setup-php", Tool::Php, "php-version"),
    ("dtolnay/rust-toolchain", Tool::Rust, "toolchain"),
    ("actions-rs/toolchain", Tool::Rust, "toolchain"),
    ("actions-rust-lang/setup-rust-toolchain", Tool::Rust, "toolchain"),
    ("moonrepo/setup-rust", Tool::Rust, "channel"),
    ("snok/install-poetry", Tool::Poetry, "version"),
    ("abatilo/actions-poetry", Tool::Poetry, "poetry-version"),
    ("gradle/actions/setup-gradle", Tool::Gradle, "gradle-version"),
    ("gradle/gradle-build-action", Tool::Gradle, "gradle-version"),
    ("stCarolas/setup-maven", Tool::Maven, "maven-version"),
];

pub(crate) fn find(reader: &mut Reader<'_>) -> Result<Option<String>, Fault> {
    reader.first(&PLACES)
}

pub(crate) fn take(reader: &mut Reader<'_>, draft: &mut Draft, file: &str) -> Result<bool, Fault> {
    let Some(text) = reader.text(file)? else {
        return Ok(false);
    };
    let value = formats::yaml(file, &text)?;
    let root = Node::root(file, &value);
    draft.file(file);
    let job = match root.get("jobs")? {
        Some(jobs) => jobs.get(JOB)?,
        None => None,
    };
    let Some(job) = job else {
        draft.left_out(file, "jobs", format!("there is no job named {JOB}"));
        return Ok(false);
    };
    let mut environment = Vec::new();
    for node in [&root, &job] {
        if let Some(all) = node.get("env")? {
            for (name, value) in all.scalars()? {
                environment.retain(|(known, _): &(String, String)| *known != name);
                environment.push((name, value));
            }
        }
    }
    for (key, node) in job.entries()? {
        match key {
            "services" => {
                for (name, _) in node.entries()? {
                    let why = "it is a container; install what it serves with Debian's packages in a step";
                    draft.left_out(file, &format!("services.{name}"), why);
                }
            }
            "container" => draft.left_out(file, key, "the steps run in the VM itself"),
            "strategy" => draft.left_out(file, key, "one VM is prepared, not one of each kind"),
            "runs-on" => {
                if let Value::String(on) = node.value
                    && !on.contains("ubuntu")
                {
                    draft.left_out(file, key, "the steps run in a VM of Hearth's image: Debian, x86-64");
                }
            }
            _ => {}
        }
    }
    let Some(steps) = job.get("steps")? else {
        return Ok(true);
    };
    let all = steps.items()?;
    if all.len() > MAX_COMMANDS {
        return Err(steps.fault(format!("has {} steps; at most {MAX_COMMANDS} are read", all.len())));
    }
    for step in all {
        Step::read(&step)?.take(reader, draft, &environment)?;
    }
    Ok(true)
}

struct Step<'a> {
    node: &'a Node<'a>,
    /// Its name or what it does, for people.
    place: String,
    environment: Vec<(String, String)>,
}

impl<'a> Step<'a> {
    fn read(node: &'a Node<'a>) -> Result<Self, Fault> {
        let name = node.text_of("name")?.map(|name| format!("{} ({name})", node.place));
        let short = |place: &str| place.strip_prefix(&format!("jobs.{JOB}.")).unwrap_or(place).to_owned();
        Ok(Self {
            place: short(&name.unwrap_or_else(|| node.place.clone())),
            environment: match node.get("env")? {
                Some(all) => all.scalars()?,
                None => Vec::new(),
            },
            node,
        })
    }

    fn take(&self, reader: &mut Reader<'_>, draft: &mut Draft, around: &[(String, String)]) -> Result<(), Fault> {
        let (file, place) = (self.node.file, self.place.as_str());
        if let Some(condition) = self.node.scalar_of("if")? {
            let plain = condition.trim().trim_start_matches("${{").trim_end_matches("}}").trim();
            if !["always()", "success()", "true", "!cancelled()"].contains(&plain) {
                draft.left_out(
                    file,
                    place,
                    "it has a condition, and nothing here can say whether it holds",
                );
                return Ok(());
            }
        }
        if let Some(action) = self.node.text_of("uses")? {
            return self.uses(action, reader, draft);
        }
        let Some(run) = self.node.text_of("run")? else {
            draft.left_out(file, place, "it neither runs nor uses anything");
            return Ok(());
        };
        let shell = self.node.text_of("shell")?.unwrap_or("bash");
        let shell = shell.split_whitespace().next().unwrap_or("bash");
        if !["bash", "sh", "python"].contains(&shell) {
            draft.left_out(file, place, format!("its shell is {shell}, which the image has not"));
            return Ok(());
        }
        let mut text = String::new();
        for (name, value) in around.iter().chain(&self.environment) {
            if !is_name(name) {
                draft.left_out(file, place, "a variable of it has a name that no shell takes");
                continue;
            }
            let value = match self.put_in(value, draft) {
                Ok(value) => value,
                Err(why) => {
                    draft.left_out(file, place, why);
                    continue;
                }
            };
            text.push_str(&format!("export {name}={}\n", expanding(&value)));
        }
        let command = match self.put_in(run.trim_end(), draft) {
            Ok(command) => command,
            Err(why) => {
                draft.left_out(file, place, why);
                return Ok(());
            }
        };
        if let Some(folder) = self.node.text_of("working-directory")? {
            text.push_str(&format!("cd {}\n", quote(folder)));
        }
        text.push_str(&files_of_a_step(&command));
        match shell {
            "bash" => text.push_str(&command),
            "sh" => text.push_str(&format!("sh -e -c {}", quote(&command))),
            _ => text.push_str(&format!("python3 -c {}", quote(&command))),
        }
        if has_long_variables(&command) {
            text.push_str(KEEP_LONG_VARIABLES);
        }
        if command.contains("GITHUB_PATH") {
            text.push_str(
                "\nwhile read -r folder; do PATH=\"$folder:$PATH\"; done <\"$GITHUB_PATH\"\nprintf \"PATH='%s'\\n\" \"$PATH\" >>/etc/environment",
            );
        }
        draft.taken(
            file,
            place,
            format!("{} runs in the set-up", crate::shell::shown(&command)),
        );
        draft.run_quietly(file, place, &text);
        draft.is_prepared();
        Ok(())
    }

    fn uses(&self, action: &str, reader: &mut Reader<'_>, draft: &mut Draft) -> Result<(), Fault> {
        let (file, place) = (self.node.file, self.place.as_str());
        let name = action.split('@').next().unwrap_or(action);
        let with = self.node.get("with")?;
        let input = |key: &str| match &with {
            Some(with) => with.scalar_of(key),
            None => Ok(None),
        };
        if let Some((_, tool, key)) = SETS_UP.iter().find(|(known, ..)| known.eq_ignore_ascii_case(name)) {
            let mut version = input(key)?;
            if version.is_none()
                && let Some(path) = input(&format!("{key}-file"))?
                && let Some(path) = crate::files::join("", &path)
            {
                version = tools::version_in(reader, &path, *tool)?;
            }
            draft.need(file, place, *tool, version.as_deref());
            if name.eq_ignore_ascii_case("ruby/setup-ruby") && input("bundler-cache")?.as_deref() == Some("true") {
                draft.need(file, place, Tool::Bundler, None);
                draft.run(file, place, "bundle install");
            }
            return Ok(());
        }
        match name {
            "actions/checkout" => draft.taken(file, place, "the repository is cloned anyway"),
            "actions/cache" | "actions/cache/restore" | "Swatinem/rust-cache" | "actions/cache/save" => {
                draft.left_out(
                    file,
                    place,
                    "what a step leaves is kept with the VM; no cache is needed",
                );
            }
            "jdx/mise-action" => {
                draft.taken(file, place, "the tools of mise.toml or .tool-versions");
                tools::take(reader, draft)?;
            }
            _ if name.starts_with("./") => draft.left_out(
                file,
                place,
                format!("{name} is an action of the repository's; run its commands in a step"),
            ),
            _ => draft.left_out(
                file,
                place,
                format!("what the action {name} does is not known; run its commands in a step"),
            ),
        }
        Ok(())
    }

    /// A text with what its expressions stand for; an error is why it cannot be taken.
    fn put_in(&self, text: &str, draft: &mut Draft) -> Result<String, String> {
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find("${{") {
            out.push_str(&rest[..at]);
            let Some(end) = rest[at..].find("}}") else { break };
            let expression = rest[at + 3..at + end].trim();
            match expression.split_once('.') {
                Some(("secrets" | "vars", name)) if is_name(name) => {
                    let why = format!("the value of {name}: give it with `hearth env set`; the step has it as ${name}");
                    draft.left_out(self.node.file, &self.place, why);
                    out.push_str(&format!("${{{name}:-}}"));
                }
                Some(("env", name)) if is_name(name) => out.push_str(&format!("${{{name}}}")),
                _ => match expression {
                    "github.workspace" => out.push_str(&draft.workspace),
                    "runner.os" => out.push_str("Linux"),
                    "runner.arch" => out.push_str("X64"),
                    "runner.temp" => out.push_str("/tmp"),
                    _ => {
                        return Err(format!(
                            "nothing here knows what `{}` is",
                            expression.chars().take(40).collect::<String>()
                        ));
                    }
                },
            }
            rest = &rest[at + end + 2..];
        }
        out.push_str(rest);
        Ok(out)
    }
}

/// Whether it may write variables in the form for several lines, `NAME<<END`, the lines, `END`: see "Workflow commands for GitHub Actions".
fn has_long_variables(command: &str) -> bool {
    command.contains("GITHUB_ENV") && command.contains("<<")
}

/// Keeps what was written so. There is no room for a line's end in `/etc/environment`.
const KEEP_LONG_VARIABLES: &str = r#"
while IFS= read -r line; do
  name=${line%%<<*}
  case $name in
    "$line" | *=*) echo "$line"; continue ;;
  esac
  end=${line#*<<} value= lines=0
  while IFS= read -r more && [ "$more" != "$end" ]; do value=$more lines=$((lines + 1)); done
  if [ "$lines" -le 1 ]; then echo "$name=$value"; else echo "$name has several lines and is not kept: give it with hearth env set" >&2; fi
done <"$GITHUB_ENV" >>/etc/environment"#;

/// The files through which steps talk to each other.
fn files_of_a_step(command: &str) -> String {
    let mut text = String::new();
    if has_long_variables(command) {
        text.push_str("export GITHUB_ENV=$(mktemp)\n");
    } else if command.contains("GITHUB_ENV") {
        text.push_str("export GITHUB_ENV=/etc/environment\n");
    }
    if command.contains("GITHUB_PATH") {
        text.push_str("export GITHUB_PATH=$(mktemp)\n");
    }
    for name in ["GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"] {
        if command.contains(name) {
            text.push_str(&format!("export {name}=/dev/null\n"));
        }
    }
    if command.contains("GITHUB_WORKSPACE") {
        text.push_str("export GITHUB_WORKSPACE=$PWD\n");
    }
    text
}
