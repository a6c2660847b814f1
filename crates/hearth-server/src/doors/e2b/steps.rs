//! The steps of a template as set-up commands, each of which is checkpointed: pure.

use serde::Deserialize;
use serde_json::{Value, json};

use super::users;

/// Images that the base stands for.
const BASES: [&str; 4] = ["e2bdev/base", "e2bdev/code-interpreter", "debian:bookworm", "debian:12"];
/// How often a template's ready command is tried, with a second between.
const READY_TRIES: u32 = 300;
/// Longest name of a command.
const NAME_CHARS: usize = 80;

/// What is to be built.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Build {
    pub from_image: Option<String>,
    pub from_template: Option<String>,
    pub from_image_registry: Option<Value>,
    pub steps: Vec<Step>,
    pub start_cmd: Option<String>,
    pub ready_cmd: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub args: Vec<String>,
    pub files_hash: Option<String>,
}

/// What later steps go by.
#[derive(Debug, Default)]
struct Place {
    folder: Option<String>,
    user: Option<String>,
}

fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// A command as a set-up takes it.
fn command(number: usize, what: &str, text: &str) -> Value {
    let name: String = format!("{number:02} {what}")
        .chars()
        .filter(|one| !one.is_control())
        .take(NAME_CHARS)
        .collect();
    json!({ "name": name.trim(), "command": text })
}

impl Build {
    /// Set-up commands, or why they cannot be made. `files` gives the archive of a hash, base64.
    pub fn commands(&self, files: impl Fn(&str) -> Option<String>) -> Result<Vec<Value>, String> {
        if let Some(image) = &self.from_image
            && !BASES
                .iter()
                .any(|base| image == base || image.starts_with(&format!("{base}:")))
        {
            return Err(format!(
                "`fromImage` {image} cannot be used: Hearth's templates start from its own Debian image. Leave the image out \
                 (`from_base_image()`) and install with steps"
            ));
        }
        if self.from_image_registry.is_some() {
            return Err("`fromImageRegistry` is not served by Hearth; leave it out".to_owned());
        }
        let (mut place, mut commands) = (Place::default(), Vec::new());
        for step in &self.steps {
            let number = commands.len() + 1;
            let argument = |at: usize| step.args.get(at).map(String::as_str).filter(|text| !text.is_empty());
            let first = argument(0).ok_or_else(|| format!("a step {} has no arguments", step.kind))?;
            match step.kind.as_str() {
                "RUN" => commands.push(command(number, first, &place.run(first, argument(1)))),
                "COPY" => {
                    let hash = step.files_hash.as_deref().ok_or("a step COPY has no `filesHash`")?;
                    let files =
                        files(hash).ok_or("the files of a step COPY were not uploaded to this server: build again")?;
                    let to = argument(1).ok_or("a step COPY says not where to")?;
                    let text = place.copy(first, to, argument(2), argument(3), &files);
                    commands.push(command(number, &format!("COPY {first} {to}"), &text));
                }
                "ENV" => {
                    let lines: Result<Vec<String>, String> = step.args.chunks(2).map(variable).collect();
                    commands.push(command(number, &format!("ENV {first}"), &lines?.join("\n")));
                }
                "WORKDIR" => place.folder = Some(place.absolute(first)),
                "USER" => place.user = Some(first.to_owned()),
                other => return Err(format!("a step of the type {other} is not served by Hearth")),
            }
        }
        if let Some(text) = self.start_cmd.as_deref().filter(|text| !text.is_empty()) {
            let mut start = command(commands.len() + 1, "start", &place.run(text, None));
            start["background"] = json!(true);
            commands.push(start);
        }
        if let Some(text) = self.ready_cmd.as_deref().filter(|text| !text.is_empty()) {
            let once = quote(&place.run(text, None));
            let wait = format!(
                "for try in $(seq {READY_TRIES}); do bash -c {once} && exit 0; sleep 1; done\necho 'the template was not ready in time' >&2; exit 1"
            );
            commands.push(command(commands.len() + 1, "ready", &wait));
        }
        Ok(commands)
    }
}

/// Every command of the VM has it from then on.
fn variable(pair: &[String]) -> Result<String, String> {
    let [name, value] = pair else {
        return Err("a step ENV must hold names and values in turn".to_owned());
    };
    let is_name = !name.is_empty() && name.chars().all(|one| one.is_ascii_alphanumeric() || one == '_');
    if !is_name || value.contains(['\n', '\r']) {
        return Err(format!(
            "the variable {name} of a step ENV cannot be set: its value is to be one line"
        ));
    }
    if value.contains('\'') && value.contains(['"', '$', '`', '\\']) {
        return Err(format!(
            "the variable {name} of a step ENV cannot be set: beside a single quote its value can have no double quote, `$`, backtick or backslash"
        ));
    }
    // Variables in it are those of the build, as in `PATH=/opt/bin:$PATH`; no command is run for it. Login shells read the file as shell, other
    // commands take one pair of quotes away: both see the same.
    let value = hearth_import::expanding(value);
    Ok(format!(
        "set +u; export {name}={value}; case \"${name}\" in *\\'*) printf '%s=\"%s\"\\n' {name} \"${name}\" ;; *) printf \"%s='%s'\\n\" {name} \"${name}\" ;; \
         esac >>/etc/environment"
    ))
}

impl Place {
    fn absolute(&self, path: &str) -> String {
        match (&self.folder, path.starts_with('/')) {
            (_, true) => path.to_owned(),
            (Some(folder), false) => format!("{}/{path}", folder.trim_end_matches('/')),
            (None, false) => format!("/home/{path}"),
        }
    }

    fn enter(&self) -> String {
        let folder = quote(self.folder.as_deref().unwrap_or("/home"));
        format!("mkdir -p {folder} && cd {folder}")
    }

    fn run(&self, text: &str, user: Option<&str>) -> String {
        // Debian keeps pip from the system's packages, which those of the clients' own image are.
        let enter = format!(
            "export PIP_BREAK_SYSTEM_PACKAGES=1 DEBIAN_FRONTEND=noninteractive\n{}",
            self.enter()
        );
        match user.or(self.user.as_deref()) {
            None | Some("root") => format!("{enter}\n{text}"),
            Some(user) => {
                let make = if user == "user" { users::MAKE } else { "" };
                format!("{make}\n{enter}\nrunuser -u {} -- bash -c {}", quote(user), quote(text))
            }
        }
    }

    fn copy(&self, from: &str, to: &str, user: Option<&str>, mode: Option<&str>, files: &str) -> String {
        let is_plain = |one: char| one.is_ascii_alphanumeric() || "_./*?[]-".contains(one);
        let from = from.strip_prefix("./").unwrap_or(from);
        let named = if from.chars().all(is_plain) {
            from.to_owned()
        } else {
            quote(from)
        };
        let (target, is_folder) = (quote(&self.absolute(to)), to.ends_with('/') || to == ".");
        let make = if is_folder {
            format!("mkdir -p {target}")
        } else {
            format!("mkdir -p \"$(dirname {target})\"")
        };
        let owner = user
            .map(|user| format!("chown -R {}: \"$copy\"\n", quote(user)))
            .unwrap_or_default();
        let bits = mode
            .map(|mode| format!("chmod -R {} \"$copy\"\n", quote(mode)))
            .unwrap_or_default();
        format!(
            "files=$(mktemp -d)\nbase64 -d <<'END-OF-FILES' | tar -xz -C \"$files\"\n{files}\nEND-OF-FILES\ncd \"$files\"\n\
             for copy in {named}; do\n{owner}{bits}if [ -d \"$copy\" ]; then mkdir -p {target}; cp -a \"$copy/.\" {target}/\n\
             else {make}; cp -a \"$copy\" {target}; fi\ndone\nrm -rf \"$files\""
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(body: Value) -> Result<Vec<Value>, String> {
        let build: Build = serde_json::from_value(body).unwrap();
        build.commands(|hash| (hash == "h").then(|| "Zg==".to_owned()))
    }

    #[test]
    fn steps_become_commands() {
        let commands = build(json!({
            "fromImage": "e2bdev/base",
            "steps": [
                { "type": "ENV", "args": ["A", "1", "B", "it's \u{fc}", "C", "say \"hi\" $x"] },
                { "type": "WORKDIR", "args": ["/srv"] },
                { "type": "WORKDIR", "args": ["app"] },
                { "type": "RUN", "args": ["echo it's"] },
                { "type": "RUN", "args": ["id", "user"] },
                { "type": "COPY", "args": ["a.txt", "b/", "", "0600"], "filesHash": "h" },
            ],
            "startCmd": "serve",
            "readyCmd": "check",
        }))
        .unwrap();
        let text = |at: usize| commands[at]["command"].as_str().unwrap();
        assert_eq!(commands.len(), 6);
        for word in [r#"A="1";"#, r#"B="it's ü";"#, r#"C="say \"hi\" $x";"#] {
            assert!(text(0).contains(word), "{word}: {}", text(0));
        }
        assert!(
            text(1).contains("cd '/srv/app'") && text(1).ends_with("echo it's"),
            "{}",
            text(1)
        );
        assert!(text(2).contains("runuser -u 'user' -- bash -c 'id'"), "{}", text(2));
        assert!(
            text(3).contains("Zg==") && text(3).contains("'/srv/app/b/'"),
            "{}",
            text(3)
        );
        assert_eq!(commands[4]["background"], json!(true));
        assert!(text(5).contains("seq 300"));
    }

    #[test]
    fn what_is_not_served_is_said() {
        for (body, word) in [
            (json!({ "fromImage": "python:3.12" }), "python:3.12"),
            (json!({ "fromImageRegistry": {} }), "fromImageRegistry"),
            (json!({ "steps": [{ "type": "ADD", "args": ["x"] }] }), "ADD"),
            (
                json!({ "steps": [{ "type": "COPY", "args": ["x", "y"], "filesHash": "other" }] }),
                "uploaded",
            ),
            (json!({ "steps": [{ "type": "ENV", "args": ["A"] }] }), "ENV"),
            (
                json!({ "steps": [{ "type": "ENV", "args": ["A", "it's \"x\""] }] }),
                "single quote",
            ),
        ] {
            let why = build(body.clone()).unwrap_err();
            assert!(why.contains(word), "{body}: {why}");
        }
    }
}
