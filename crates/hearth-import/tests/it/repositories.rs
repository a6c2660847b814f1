//! What is taken from each repository, how, and what is not and why: a change of that is a difference in the files beside the
//! repositories.

use std::fmt::Write as _;

use hearth_import::read;

use crate::in_memory::InMemory;

#[test]
fn what_is_read_from_each_repository() {
    insta::with_settings!({ snapshot_path => "../repos", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::glob!("../repos", "*.txt", |path| {
            let files = InMemory::parse(&std::fs::read_to_string(path).unwrap());
            insta::assert_snapshot!("read", shown(&files));
        });
    });
}

fn shown(files: &InMemory) -> String {
    let imported = match read(files, "/home/app") {
        Ok(imported) => imported,
        Err(fault) => return fault.to_string(),
    };
    let mut text = imported.report();
    let hooks = &imported.settings.hooks;
    assert_eq!(hooks.setup.len(), imported.sources.len());
    for (hook, source) in hooks.setup.iter().zip(&imported.sources) {
        write!(text, "\n$ {source}\n{}\n", hook.command()).unwrap();
    }
    for (what, script) in [
        ("after a checkout", &hooks.update_after_checkout),
        ("at the start", &hooks.startup),
    ] {
        if let Some(script) = script {
            write!(text, "\n$ {what}\n{script}\n").unwrap();
        }
    }
    for terminal in &hooks.terminals {
        writeln!(text, "\nterminal {}: {}", terminal.name, terminal.command).unwrap();
    }
    for preview in &hooks.previews {
        writeln!(text, "\npreview {}: {}", preview.name, preview.port).unwrap();
    }
    if !imported.needs.is_empty() {
        writeln!(text, "\n{:?}", imported.needs).unwrap();
    }
    // What it would be written as is read again as the same.
    let written = serde_json::to_string(&imported.settings).unwrap();
    let again: hearth_api::settings::Settings = serde_json::from_str(&written).unwrap();
    assert_eq!(again, imported.settings);
    text
}
