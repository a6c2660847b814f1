//! What the program is made of, as CycloneDX 1.6: every crate that is compiled into it, with its version, licence and the sum that
//! `Cargo.lock` holds. Cargo itself says which these are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use serde_json::{Value, json};

use super::{Release, read};
use crate::workspace;

/// The package of the program.
const PROGRAM: &str = "hearth";

pub(super) fn list_crates(release: &Release) -> Result<PathBuf> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let text = read(workspace::cargo().args([
        "metadata",
        "--locked",
        "--format-version",
        "1",
        "--filter-platform",
        &triple,
    ]))?;
    let metadata: Value = serde_json::from_str(&text)?;
    let sums = sums(&fs::read_to_string(workspace::root().join("Cargo.lock"))?);
    let document = document(&metadata, &sums, &release.version);
    let file = release.folder.join(format!("hearth-{}.cdx.json", release.version));
    super::write(&file, &format!("{document:#}\n"), 0o644)?;
    Ok(file)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

/// The sums of `Cargo.lock`, by name and version.
fn sums(lock: &str) -> BTreeMap<(String, String), String> {
    let mut all = BTreeMap::new();
    for package in lock.split("[[package]]") {
        let field = |name: &str| {
            let begin = format!("{name} = \"");
            let line = package.lines().find_map(|line| line.strip_prefix(begin.as_str()));
            line.map(|line| line.trim_end_matches('"').to_owned())
        };
        if let (Some(name), Some(version), Some(sum)) = (field("name"), field("version"), field("checksum")) {
            all.insert((name, version), sum);
        }
    }
    all
}

/// The ids of what is compiled into the program: what it depends on, and no test or build script.
fn compiled_in(metadata: &Value) -> BTreeSet<&str> {
    let nodes: BTreeMap<&str, &Value> = list(&metadata["resolve"], "nodes")
        .map(|node| (text(node, "id"), node))
        .collect();
    let root = list(metadata, "packages").find(|package| text(package, "name") == PROGRAM);
    let mut open: Vec<&str> = root.map(|package| text(package, "id")).into_iter().collect();
    let mut seen = BTreeSet::new();
    while let Some(id) = open.pop() {
        if !seen.insert(id) {
            continue;
        }
        let Some(node) = nodes.get(id) else { continue };
        let is_normal = |dependency: &&Value| list(dependency, "dep_kinds").any(|kind| kind["kind"].is_null());
        open.extend(
            list(node, "deps")
                .filter(is_normal)
                .map(|dependency| text(dependency, "pkg")),
        );
    }
    seen
}

fn document(metadata: &Value, sums: &BTreeMap<(String, String), String>, version: &str) -> Value {
    let ids = compiled_in(metadata);
    let packages = list(metadata, "packages").filter(|package| ids.contains(text(package, "id")));
    let components: Vec<Value> = packages
        .filter(|package| text(package, "name") != PROGRAM)
        .map(|package| component(package, sums))
        .collect();
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": format!("pkg:cargo/{PROGRAM}@{version}"),
                "name": PROGRAM,
                "version": version,
                "licenses": [{ "expression": "Apache-2.0" }],
            }
        },
        "components": components,
    })
}

fn component(package: &Value, sums: &BTreeMap<(String, String), String>) -> Value {
    let (name, version) = (text(package, "name"), text(package, "version"));
    let purl = format!("pkg:cargo/{name}@{version}");
    let mut component = json!({ "type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl });
    // Old manifests write `/` where SPDX says OR.
    if let Some(licence) = package["license"].as_str() {
        component["licenses"] = json!([{ "expression": licence.replace('/', " OR ") }]);
    }
    if let Some(sum) = sums.get(&(name.to_owned(), version.to_owned())) {
        component["hashes"] = json!([{ "alg": "SHA-256", "content": sum }]);
    }
    component
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compiled_in_is_listed_with_licence_and_sum() {
        let package = |name: &str| json!({ "id": name, "name": name, "version": "1.0.0", "license": "MIT/Apache-2.0" });
        let normal = json!([{ "kind": null }]);
        let metadata = json!({
            "packages": [package("hearth"), package("used"), package("deep"), package("tested")],
            "resolve": { "nodes": [
                { "id": "hearth", "deps": [
                    { "pkg": "used", "dep_kinds": normal }, { "pkg": "tested", "dep_kinds": [{ "kind": "dev" }] },
                ] },
                { "id": "used", "deps": [{ "pkg": "deep", "dep_kinds": normal }] },
                { "id": "deep", "deps": [] },
                { "id": "tested", "deps": [] },
            ] },
        });
        let lock =
            "[[package]]\nname = \"used\"\nversion = \"1.0.0\"\nchecksum = \"abc\"\n\n[[package]]\nname = \"deep\"\n";
        let document = document(&metadata, &sums(lock), "2.0.0");
        let names: Vec<&str> = list(&document, "components").map(|one| text(one, "name")).collect();
        assert_eq!(names, ["used", "deep"]);
        let used = &document["components"][0];
        assert_eq!(used["hashes"][0]["content"], "abc");
        assert_eq!(used["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(document["metadata"]["component"]["version"], "2.0.0");
    }
}
