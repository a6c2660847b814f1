//! `.cursor/environment.json`: what is installed, what is started, terminals and ports.

use crate::base::{Base, base};
use crate::draft::Draft;
use crate::files::{Reader, join};
use crate::node::Node;
use crate::{Fault, dockerfile, formats};

const PLACE: &str = ".cursor/environment.json";

pub(crate) fn find(reader: &mut Reader<'_>) -> Result<Option<String>, Fault> {
    reader.first(&[PLACE])
}

pub(crate) fn take(reader: &mut Reader<'_>, draft: &mut Draft, file: &str) -> Result<bool, Fault> {
    let Some(text) = reader.text(file)? else {
        return Ok(false);
    };
    let value = formats::jsonc(file, &text)?;
    let root = Node::root(file, &value);
    root.object()?;
    draft.file(file);
    if let Some(build) = root.get("build")? {
        made_of(&build, reader, draft)?;
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
    }
    if let Some(all) = root.get("env")? {
        for (name, value) in all.scalars()? {
            draft.variable(file, &format!("env.{name}"), &name, &value);
        }
    }
    if let Some(user) = root.text_of("user")? {
        draft.user(file, "user", user);
    }
    if let Some(install) = root.text_of("install")?.filter(|text| !text.trim().is_empty()) {
        draft.run(file, "install", install);
        draft.update(install);
        draft.taken(file, "install", "runs after each checkout, too");
    }
    if let Some(start) = root.text_of("start")?.filter(|text| !text.trim().is_empty()) {
        draft.start(file, "start", start);
    }
    if let Some(terminals) = root.get("terminals")? {
        for terminal in terminals.items()? {
            let name = terminal.text_of("name")?.unwrap_or("terminal");
            let command = terminal
                .text_of("command")?
                .ok_or_else(|| terminal.fault("has no command"))?;
            draft.terminal(file, &terminal.place, name, command)?;
        }
    }
    if let Some(ports) = root.get("ports")? {
        for port in ports.items()? {
            let label = port.text_of("name")?;
            let number = port.get("port")?.ok_or_else(|| port.fault("has no port"))?;
            let number = number
                .value
                .as_u64()
                .ok_or_else(|| number.fault("must be a whole number"))?;
            draft.preview(file, &port.place, number, label);
        }
    }
    for (key, _) in root.entries()? {
        let why = match key {
            "$schema" | "name" | "build" | "image" | "env" | "user" | "install" | "start" | "terminals" | "ports" => {
                continue;
            }
            "snapshot" => "a snapshot is kept by the service that made it",
            "repositoryDependencies" => "give the project these repositories with `hearth project edit`",
            "egressAllowlist" | "egressMode" => "give the project a policy with `hearth egress set`",
            "agentCanUpdateSnapshot" | "persistedDirectories" => "it is about snapshots of the service's",
            _ => "the key is not known",
        };
        draft.left_out(file, key, why);
    }
    Ok(true)
}

/// The file's own folder counts, else the repository's.
fn made_of(build: &Node<'_>, reader: &mut Reader<'_>, draft: &mut Draft) -> Result<(), Fault> {
    let Some(node) = build.get("dockerfile")? else {
        return Ok(());
    };
    let named = |folder: &str, path: &str| {
        join(folder, path).ok_or_else(|| node.fault("leads out of the repository; only its own files are read"))
    };
    let text = node.text()?;
    let mut folder = ".cursor";
    let mut path = named(folder, text)?;
    if !reader.has(&path)? {
        folder = "";
        path = named(folder, text)?;
    }
    if !reader.has(&path)? {
        return Err(node.fault(format!("there is no {path} in the repository")));
    }
    let context = match build.get("context")? {
        Some(context) => {
            let text = context.text()?;
            join(folder, text)
                .ok_or_else(|| context.fault("leads out of the repository; only its own files are read"))?
        }
        None => folder.to_owned(),
    };
    let mut options = dockerfile::Options {
        context,
        ..dockerfile::Options::default()
    };
    options.target = build.text_of("target")?.map(str::to_owned);
    draft.taken(
        node.file,
        &node.place,
        format!("the instructions of {path} are steps of the set-up"),
    );
    if !dockerfile::steps(reader, draft, &path, &options)? {
        draft.left_out(
            node.file,
            &node.place,
            "the commands below run in a VM of Hearth's image",
        );
    }
    Ok(())
}
