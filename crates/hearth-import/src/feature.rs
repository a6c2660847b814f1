//! Features of `devcontainer.json`: those in the repository are run, well-known ones are packages, others are named: no registry is
//! asked.

use serde_json::Value;

use crate::draft::Draft;
use crate::files::{Reader, folder_of, join};
use crate::node::Node;
use crate::packages::Tool;
use crate::shell::{is_name, quote};
use crate::{Fault, formats};

/// Features that stand for packages of Debian's.
const PACKAGES: [(&str, &[&str]); 5] = [
    ("common-utils", &["zsh", "man-db"]),
    ("git", &["git"]),
    ("git-lfs", &["git-lfs"]),
    ("github-cli", &["gh"]),
    ("sshd", &["openssh-server"]),
];

/// What a feature in the repository may say besides, and why it is not taken.
const NOT_TAKEN: [(&str, &str); 13] = [
    ("dependsOn", DEPENDS),
    (
        "installsAfter",
        "features run in the order of devcontainer.json and its overrideFeatureInstallOrder",
    ),
    ("onCreateCommand", COMMAND),
    ("updateContentCommand", COMMAND),
    ("postCreateCommand", COMMAND),
    ("postStartCommand", COMMAND),
    ("postAttachCommand", COMMAND),
    ("entrypoint", COMMAND),
    ("mounts", "a VM has a disk of its own"),
    ("privileged", PRIVILEGED),
    ("capAdd", PRIVILEGED),
    ("securityOpt", PRIVILEGED),
    ("init", "a VM has an init of its own"),
];
const DEPENDS: &str = "features are not looked for: name this one in devcontainer.json, before the one that needs it";
const COMMAND: &str = "of a feature only install.sh is run; this can be a command of the set-up";
const PRIVILEGED: &str = "it is a container's; in a VM root may do everything";

pub(crate) fn take(
    root: &Node<'_>,
    features: &Node<'_>,
    reader: &mut Reader<'_>,
    draft: &mut Draft,
) -> Result<(), Fault> {
    let mut first = Vec::new();
    if let Some(order) = root.get("overrideFeatureInstallOrder")? {
        for id in order.items()? {
            first.push(id.text()?);
        }
    }
    let mut all = features.entries()?;
    // Versions may be left out there.
    let at = |id: &str| {
        first
            .iter()
            .position(|first| id == *first || id.strip_prefix(first).is_some_and(|rest| rest.starts_with(':')))
    };
    all.sort_by_key(|(id, _)| at(id).unwrap_or(first.len()));
    for (id, options) in all {
        match id.strip_prefix("./") {
            Some(_) => local(id, &options, reader, draft)?,
            None => known(id, &options, draft)?,
        }
    }
    Ok(())
}

fn known(id: &str, options: &Node<'_>, draft: &mut Draft) -> Result<(), Fault> {
    let unversioned = match id.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => path,
        _ => id,
    };
    let official = unversioned
        .strip_prefix("ghcr.io/devcontainers/features/")
        .or_else(|| (!unversioned.contains('/')).then_some(unversioned));
    let (file, place) = (options.file, options.place.as_str());
    let Some(name) = official else {
        draft.left_out(
            file,
            place,
            "it is a feature of a registry, and none is asked; its install.sh can be a command of the set-up",
        );
        return Ok(());
    };
    if let Some(tool) = Tool::named(name) {
        let version = match options.value {
            Value::String(version) => Some(version.clone()),
            Value::Object(_) => options.scalar_of("version")?,
            _ => None,
        };
        draft.need(file, place, tool, version.as_deref());
        return Ok(());
    }
    match PACKAGES.iter().find(|(known, _)| *known == name) {
        Some((_, packages)) => {
            draft.taken(file, place, format!("Debian's {}", packages.join(", ")));
            draft.apt(file, place, packages);
        }
        None => draft.left_out(
            file,
            place,
            "it is a feature of a registry, and none is asked; its install.sh can be a command of the set-up",
        ),
    }
    Ok(())
}

/// A feature in the repository: its `install.sh`, with its options as variables.
fn local(id: &str, options: &Node<'_>, reader: &mut Reader<'_>, draft: &mut Draft) -> Result<(), Fault> {
    let (file, place) = (options.file, options.place.as_str());
    let folder = join(folder_of(file), id)
        .ok_or_else(|| options.fault("leads out of the repository; only its own files are read"))?;
    let script = format!("{folder}/install.sh");
    if !reader.has(&script)? {
        return Err(options.fault(format!("there is no {script} in the repository")));
    }
    let about = format!("{folder}/devcontainer-feature.json");
    let mut variables: Vec<(String, String)> = Vec::new();
    let mut kept: Vec<(String, String)> = Vec::new();
    if let Some(text) = reader.text(&about)? {
        let value = formats::jsonc(&about, &text)?;
        let root = Node::root(&about, &value);
        if let Some(known) = root.get("options")? {
            for (name, option) in known.entries()? {
                if let Some(default) = option.scalar_of("default")? {
                    variables.push((variable(name), default));
                }
            }
        }
        if let Some(all) = root.get("containerEnv")? {
            kept = all.scalars()?;
        }
        for (key, why) in NOT_TAKEN {
            if root.get(key)?.is_some() {
                draft.left_out(&about, key, why);
            }
        }
    }
    match options.value {
        Value::Object(_) => {
            for (name, value) in options.scalars()? {
                let name = variable(&name);
                variables.retain(|(known, _)| *known != name);
                variables.push((name, value));
            }
        }
        Value::String(version) => variables.push(("VERSION".to_owned(), version.clone())),
        _ => {}
    }
    for (name, _) in &variables {
        if !is_name(name) {
            return Err(options.fault("has an option whose name is no variable's"));
        }
    }
    let given: String = variables
        .iter()
        .map(|(name, value)| format!("{name}={} ", quote(value)))
        .collect();
    let (user, home) = match draft.user_name() {
        Some(name) => (name, format!("\"$(getent passwd {name} | cut -d: -f6)\"")),
        None => ("root", "/root".to_owned()),
    };
    let users = format!("_REMOTE_USER={user} _REMOTE_USER_HOME={home} _CONTAINER_USER=root _CONTAINER_USER_HOME=/root");
    let text = format!("cd {} && env {users} {given}bash ./install.sh", quote(&folder));
    draft.taken(file, place, format!("{script} runs in the set-up, as root"));
    draft.run_as_root(file, place, text);
    for (name, value) in kept {
        draft.expanding_variable(&about, &format!("containerEnv.{name}"), &name, &value);
    }
    Ok(())
}

/// An option's name as its script knows it.
fn variable(option: &str) -> String {
    let name: String = option
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_uppercase()
            } else {
                '_'
            }
        })
        .collect();
    name.trim_start_matches(|c: char| c.is_ascii_digit()).to_owned()
}
