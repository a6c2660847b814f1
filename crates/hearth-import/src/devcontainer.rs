//! `devcontainer.json`: the container's commands become the set-up's, in the order in which the format runs them.

use serde_json::Value;

use crate::base::{Base, base};
use crate::devcontainer_keys::{why_not, why_not_now};
use crate::draft::Draft;
use crate::files::{Reader, folder_of, join};
use crate::node::Node;
use crate::shell::{expanding, words};
use crate::{Fault, dockerfile, feature, formats};

const PLACES: [&str; 2] = [".devcontainer/devcontainer.json", ".devcontainer.json"];

/// Keys that are read below.
const READ: [&str; 17] = [
    "$schema",
    "name",
    "image",
    "build",
    "dockerFile",
    "context",
    "dockerComposeFile",
    "features",
    "overrideFeatureInstallOrder",
    "containerUser",
    "remoteUser",
    "containerEnv",
    "remoteEnv",
    "forwardPorts",
    "portsAttributes",
    "hostRequirements",
    "appPort",
];

/// Who decides what a machine has.
const SIZE: &str = "the project's VM size decides, which `hearth import --project` sets";

/// The commands that the format runs before somebody works in the container, in its order.
const PREPARES: [&str; 3] = ["onCreateCommand", "updateContentCommand", "postCreateCommand"];

pub(crate) fn find(reader: &mut Reader<'_>) -> Result<Option<String>, Fault> {
    if let Some(file) = reader.first(&PLACES)? {
        return Ok(Some(file));
    }
    for folder in reader.folders_in(".devcontainer")? {
        let file = format!(".devcontainer/{folder}/devcontainer.json");
        if reader.has(&file)? {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

pub(crate) fn take(reader: &mut Reader<'_>, draft: &mut Draft, file: &str) -> Result<bool, Fault> {
    let Some(text) = reader.text(file)? else {
        return Ok(false);
    };
    let value = formats::jsonc(file, &text)?;
    let root = Node::root(file, &value);
    root.object()?;
    draft.file(file);
    others(reader, draft, file)?;
    machine(&root, draft)?;
    if !made_of(&root, reader, draft)? {
        return Ok(false);
    }
    // Features are told of the user.
    for key in ["remoteUser", "containerUser"] {
        if let Some(user) = root.text_of(key)? {
            draft.user(file, key, user);
            break;
        }
    }
    if let Some(features) = root.get("features")? {
        feature::take(&root, &features, reader, draft)?;
    }
    variables(&root, draft)?;
    for key in PREPARES {
        for (place, command) in commands(&root, key, draft)? {
            draft.run(file, &place, &command);
            if key == "updateContentCommand" {
                draft.update(&command);
                draft.taken(file, &place, "runs after each checkout, too");
            }
        }
    }
    for (place, command) in commands(&root, "postStartCommand", draft)? {
        draft.start(file, &place, &command);
    }
    ports(&root, draft)?;
    for (key, _) in root.entries()? {
        let is_read = READ.contains(&key) || PREPARES.contains(&key) || key == "postStartCommand";
        if !is_read {
            draft.left_out(file, key, why_not(key));
        }
    }
    Ok(true)
}

/// Files that stand beside the one that decides.
fn others(reader: &mut Reader<'_>, draft: &mut Draft, file: &str) -> Result<(), Fault> {
    let mut all: Vec<String> = PLACES.iter().map(|place| (*place).to_owned()).collect();
    let folders = reader.folders_in(".devcontainer")?;
    all.extend(
        folders
            .iter()
            .map(|folder| format!(".devcontainer/{folder}/devcontainer.json")),
    );
    for other in all {
        if other != file && reader.has(&other)? {
            draft.left_out(&other, "the file", format!("{file} is read in its place"));
        }
    }
    Ok(())
}

/// What the container is made of. `false`: not of what a VM can stand in for, so another file may say more.
fn made_of(root: &Node<'_>, reader: &mut Reader<'_>, draft: &mut Draft) -> Result<bool, Fault> {
    let file = root.file;
    if root.get("dockerComposeFile")?.is_some() {
        draft.left_out(
            file,
            "dockerComposeFile",
            "its services are containers; what they do can be a command of the set-up",
        );
        return Ok(true);
    }
    if let Some(image) = root.text_of("image")? {
        match base(image) {
            Base::Debian(None) => draft.taken(file, "image", format!("a VM of Hearth's image stands in for {image}")),
            Base::Debian(Some((tool, version))) => draft.need(file, "image", tool, version.as_deref()),
            Base::Other(why) => draft.left_out(
                file,
                "image",
                format!("{why}; the commands run in a VM of Hearth's image"),
            ),
        }
        return Ok(true);
    }
    let build = root.get("build")?;
    let node = match &build {
        Some(build) => build.get("dockerfile")?,
        None => root.get("dockerFile")?,
    };
    let Some(node) = node else { return Ok(true) };
    let folder = folder_of(file);
    let named = |node: &Node<'_>, path: &str| {
        join(folder, path).ok_or_else(|| node.fault("leads out of the repository; only its own files are read"))
    };
    let path = named(&node, node.text()?)?;
    let context = match &build {
        Some(build) => build.get("context")?,
        None => root.get("context")?,
    };
    let context = match &context {
        Some(node) => named(node, node.text()?)?,
        None => folder.to_owned(),
    };
    let mut options = dockerfile::Options {
        context,
        ..dockerfile::Options::default()
    };
    if let Some(build) = &build {
        if let Some(arguments) = build.get("args")? {
            options.arguments = arguments.scalars()?;
        }
        options.target = build.text_of("target")?.map(str::to_owned);
        for (key, of) in build.entries()? {
            if !["dockerfile", "context", "args", "target"].contains(&key) {
                draft.left_out(file, &of.place, "an option of Docker's own");
            }
        }
    }
    if !reader.has(&path)? {
        return Err(node.fault(format!("there is no {path} in the repository")));
    }
    draft.taken(
        file,
        &node.place,
        format!("the instructions of {path} are steps of the set-up"),
    );
    if !dockerfile::steps(reader, draft, &path, &options)? {
        draft.left_out(file, &node.place, "the commands below run in a VM of Hearth's image");
    }
    Ok(true)
}

fn variables(root: &Node<'_>, draft: &mut Draft) -> Result<(), Fault> {
    let mut missing: Vec<&str> = Vec::new();
    for key in ["containerEnv", "remoteEnv"] {
        let Some(all) = root.get(key)? else { continue };
        for (name, node) in all.entries()? {
            if node.value.is_null() {
                draft.left_out(root.file, &node.place, "it takes a variable away");
                continue;
            }
            let text = node.scalar()?;
            let is_of_there = text.starts_with("${localEnv:") && text.find('}') == Some(text.len() - 1);
            if is_of_there && text.matches(':').count() == 1 {
                let why = "its value is the one on the machine that opens the container; give it with `hearth env set`";
                draft.left_out(root.file, &node.place, why);
                missing.push(name);
                continue;
            }
            let is_of = |name: &&&str| text.contains(&format!("${{containerEnv:{name}}}"));
            if let Some(other) = missing.iter().find(is_of) {
                let why = format!("it is made of {other}, which is not taken");
                draft.left_out(root.file, &node.place, why);
                missing.push(name);
                continue;
            }
            let value = put_in(&text, draft, &node);
            if value.contains('\u{1}') && crate::shell::is_name(name) {
                let word = expanding(&value).replace('\u{1}', "$");
                draft.taken(
                    root.file,
                    &node.place,
                    format!("{name} is set for every program in the VM, in /etc/environment"),
                );
                draft.run_as_root(root.file, &node.place, crate::shell::keep_variable(name, &word));
            } else {
                draft.variable(root.file, &node.place, name, &value);
            }
        }
    }
    Ok(())
}

/// A text with what the format's own variables stand for; where a variable of the VM is meant, U+0001 stands for the dollar sign.
fn put_in(text: &str, draft: &mut Draft, node: &Node<'_>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        out.push_str(&rest[..at]);
        let Some(end) = rest[at..].find('}') else {
            rest = &rest[at..];
            break;
        };
        let name = &rest[at + 2..at + end];
        let mut parts = name.splitn(3, ':');
        let (kind, of, default) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
        match (kind, of) {
            ("containerWorkspaceFolder" | "localWorkspaceFolder", None) => out.push_str(&draft.workspace),
            ("containerWorkspaceFolderBasename" | "localWorkspaceFolderBasename", None) => {
                out.push_str(draft.workspace_name());
            }
            ("devcontainerId", None) => out.push_str("hearth"),
            ("containerEnv", Some(of)) if crate::shell::is_name(of) => match default {
                Some(default) => out.push_str(&format!("\u{1}{{{of}:-{default}}}")),
                None => out.push_str(&format!("\u{1}{{{of}}}")),
            },
            ("localEnv" | "env", Some(of)) => {
                out.push_str(default.unwrap_or_default());
                let why =
                    format!("the value of {of} on the machine that opens the container; give it with `hearth env set`");
                draft.left_out(node.file, &node.place, why);
            }
            // The shell's own.
            _ => out.push_str(&rest[at..=at + end]),
        }
        rest = &rest[at + end + 1..];
    }
    out.push_str(rest);
    out
}

/// The commands of one key, each with its place: one, or several by name, which the format runs at the same time.
fn commands(root: &Node<'_>, key: &str, draft: &mut Draft) -> Result<Vec<(String, String)>, Fault> {
    let Some(node) = root.get(key)? else {
        return Ok(Vec::new());
    };
    let all = match node.value {
        Value::Object(_) => node.entries()?.into_iter().map(|(_, node)| node).collect(),
        _ => vec![node],
    };
    let mut found = Vec::new();
    for node in all {
        let command = match node.value {
            Value::Array(_) => {
                let mut list = Vec::new();
                for word in node.items()? {
                    let word = put_in(word.text()?, draft, &word);
                    list.push(word);
                }
                match list.iter().any(|word| word.contains('\u{1}')) {
                    true => list
                        .iter()
                        .map(|word| expanding(word).replace('\u{1}', "$"))
                        .collect::<Vec<_>>()
                        .join(" "),
                    false => words(&list),
                }
            }
            _ => put_in(node.text()?, draft, &node).replace('\u{1}', "$"),
        };
        if command.trim().is_empty() {
            continue;
        }
        found.push((node.place.clone(), command));
    }
    Ok(found)
}

fn ports(root: &Node<'_>, draft: &mut Draft) -> Result<(), Fault> {
    let attributes = root.get("portsAttributes")?;
    let mut all = Vec::new();
    for key in ["forwardPorts", "appPort"] {
        let Some(node) = root.get(key)? else { continue };
        match node.value {
            Value::Array(_) => all.extend(node.items()?),
            _ => all.push(node),
        }
    }
    for node in all {
        let Some(port) = node.value.as_u64() else {
            let text = node.scalar()?;
            let of_container = text.rsplit(':').next().and_then(|port| port.parse().ok());
            match of_container {
                Some(port) if !text.contains(|c: char| c.is_ascii_alphabetic()) => {
                    draft.preview(root.file, &node.place, port, None);
                }
                _ => draft.left_out(root.file, &node.place, "a port of another container"),
            }
            continue;
        };
        let label = match &attributes {
            Some(attributes) => match attributes.get(&port.to_string())? {
                Some(of) => of.text_of("label")?,
                None => None,
            },
            None => None,
        };
        draft.preview(root.file, &node.place, port, label);
    }
    Ok(())
}

fn machine(root: &Node<'_>, draft: &mut Draft) -> Result<(), Fault> {
    let Some(all) = root.get("hostRequirements")? else {
        return Ok(());
    };
    for (key, node) in all.entries()? {
        match key {
            "cpus" => {
                let cpus = node
                    .value
                    .as_u64()
                    .ok_or_else(|| node.fault("must be a whole number"))?;
                draft.needs(|needs| needs.cpus = Some(cpus));
                draft.taken(root.file, &node.place, format!("{cpus} vCPUs; {SIZE}"));
            }
            "memory" | "storage" => {
                let mib = mebibytes(&node.scalar()?).ok_or_else(|| node.fault("must be a size like 8gb"))?;
                draft.needs(|needs| match key {
                    "memory" => needs.memory_mib = Some(mib),
                    _ => needs.disk_gib = Some(mib.div_ceil(1024)),
                });
                draft.taken(root.file, &node.place, format!("{mib} MiB; {SIZE}"));
            }
            _ => draft.left_out(root.file, &node.place, why_not_now(key)),
        }
    }
    Ok(())
}

fn mebibytes(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    match text[digits..].trim() {
        "tb" => number.checked_mul(1024 * 1024),
        "gb" => number.checked_mul(1024),
        "mb" => Some(number),
        "kb" => Some(number.div_ceil(1024)),
        "" => Some(number.div_ceil(1024 * 1024)),
        _ => None,
    }
}
