//! The arrows between rooms: which top module of a crate imports which, computed from its code, and their order in the server.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::code::{Kind, Token, block, tokens};
use super::{Finding, Place, Source};

/// The server's rooms, top to bottom: a room imports only rooms below it, or beside it where that makes no circle.
const ORDER: [&[&str]; 9] = [
    &["app", "serve"],
    &["web", "doors", "http"],
    &["metrics", "pools"],
    &["claims"],
    &["builds", "status"],
    &["recipes"],
    &["options"],
    &["secrets", "repos", "vms", "templates"],
    &["audit", "events", "history", "retention", "servers", "wake", "webhooks"],
];
/// The crate whose rooms have an order.
const SERVER: &str = "hearth-server";
/// The crates whose rooms may not import each other in a circle.
const NO_CIRCLES: [&str; 2] = [SERVER, "hearth-core"];

/// One room names something of another.
#[derive(Debug)]
struct Arrow {
    from: String,
    to: String,
    path: String,
    line: usize,
}

impl Arrow {
    fn place(&self, what: String) -> Place {
        Place {
            path: self.path.clone(),
            finding: Finding { line: self.line, what },
        }
    }
}

/// Imports of the server that run up, and rooms that have no place in the order.
pub(super) fn upward(files: &[Source]) -> Vec<Place> {
    let floor = |room: &str| ORDER.iter().position(|rooms| rooms.contains(&room));
    let mut unknown = BTreeSet::new();
    let mut found = Vec::new();
    for arrow in arrows(files, SERVER) {
        match (floor(&arrow.from), floor(&arrow.to)) {
            (Some(from), Some(to)) if to < from => {
                found.push(arrow.place(format!("{} imports {}, which is above it", arrow.from, arrow.to)));
            }
            (Some(_), Some(_)) => {}
            (from, _) => {
                let room = if from.is_none() { &arrow.from } else { &arrow.to };
                if unknown.insert(room.clone()) {
                    found.push(arrow.place(format!("the room {room} has no place in the order")));
                }
            }
        }
    }
    found
}

/// Imports that are part of a circle. In the server those that run up are named by [`upward`] alone.
pub(super) fn circles(files: &[Source]) -> Vec<Place> {
    let floor = |room: &str| ORDER.iter().position(|rooms| rooms.contains(&room));
    let mut found = Vec::new();
    for name in NO_CIRCLES {
        let mut all = arrows(files, name);
        if name == SERVER {
            all.retain(|arrow| floor(&arrow.from) == floor(&arrow.to));
        }
        let mut next: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for arrow in &all {
            next.entry(&arrow.from).or_default().insert(&arrow.to);
        }
        for arrow in &all {
            if reaches(&next, &arrow.to, &arrow.from) {
                found.push(arrow.place(format!(
                    "{} imports {}, and {1} leads back to {0}",
                    arrow.from, arrow.to
                )));
            }
        }
    }
    found
}

/// Whether one room imports another, itself or through others.
fn reaches(next: &BTreeMap<&str, BTreeSet<&str>>, from: &str, to: &str) -> bool {
    let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(room) = open.pop() {
        if room == to {
            return true;
        }
        if seen.insert(room) {
            open.extend(next.get(room).into_iter().flatten());
        }
    }
    false
}

/// All arrows between different rooms of a crate.
fn arrows(files: &[Source], name: &str) -> Vec<Arrow> {
    let folder = format!("crates/{name}/src/");
    let of_crate: Vec<(Vec<String>, &Source)> = files
        .iter()
        .filter(|file| file.is_rust())
        .filter_map(|file| Some((modules(file.path.strip_prefix(&folder)?), file)))
        .collect();
    let rooms: BTreeSet<&str> = of_crate
        .iter()
        .filter_map(|(modules, _)| modules.first().map(String::as_str))
        .collect();
    let mut found = Vec::new();
    for (modules, file) in &of_crate {
        let Some(from) = modules.first() else { continue };
        if modules
            .iter()
            .any(|module| module == "tests" || module.ends_with("_tests"))
        {
            continue;
        }
        for (to, line) in named_from_root(&file.text, modules.len()) {
            if to != *from && rooms.contains(to.as_str()) {
                found.push(Arrow {
                    from: from.clone(),
                    to,
                    path: file.path.clone(),
                    line,
                });
            }
        }
    }
    found
}

/// The modules that a file is in: `a/b.rs` and `a/b/mod.rs` are `a`, `b`; the crate's root is in none.
fn modules(path: &str) -> Vec<String> {
    let path = Path::new(path).with_extension("");
    let mut modules: Vec<String> = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if modules
        .last()
        .is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str()))
    {
        modules.pop();
    }
    modules
}

/// What a file names directly below the crate's root, `crate::name` or as many `super::` as it takes, and where.
fn named_from_root(code: &str, depth: usize) -> Vec<(String, usize)> {
    let all: Vec<Token<'_>> = tokens(code).into_iter().filter(|token| !token.is_comment()).collect();
    let is_path = |at: usize| all[at..].iter().map(|token| token.text).take(2).eq([":", ":"]);
    let mut found = Vec::new();
    let mut at = 0;
    while at < all.len() {
        let begins = at == 0 || !matches!(all[at - 1].text, ":" | "$");
        let mut rest = at;
        match all[at].text {
            "crate" if begins && is_path(at + 1) => rest += 3,
            "super" if begins => {
                let mut up = 0;
                while all.get(rest).is_some_and(|token| token.text == "super") && is_path(rest + 1) {
                    rest += 3;
                    up += 1;
                }
                if up != depth {
                    rest = at;
                }
            }
            _ => {}
        }
        if rest > at {
            found.extend(heads(&all[rest..]));
            at = rest;
        } else {
            at += 1;
        }
    }
    found
}

/// The first names of a path, or of each path between braces.
fn heads(tokens: &[Token<'_>]) -> Vec<(String, usize)> {
    let Some(first) = tokens.first() else { return Vec::new() };
    let named = |token: &Token<'_>| (token.text.to_owned(), token.line);
    if first.text != "{" {
        return if first.kind == Kind::Word {
            vec![named(first)]
        } else {
            Vec::new()
        };
    }
    let (mut depth, mut found) = (0_usize, Vec::new());
    let inside = &tokens[..block(tokens)];
    for pair in inside.windows(2) {
        match pair[0].text {
            "{" => depth += 1,
            "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 1 && matches!(pair[0].text, "{" | ",") && pair[1].kind == Kind::Word {
            found.push(named(&pair[1]));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> Source {
        Source {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    fn said(places: Vec<Place>) -> Vec<String> {
        let line = |place: Place| format!("{}:{}: {}", place.path, place.finding.line, place.finding.what);
        places.into_iter().map(line).collect()
    }

    #[test]
    fn upward_import_is_refused_however_it_is_written() {
        let vms = "crates/hearth-server/src/vms";
        let files = [
            file("crates/hearth-server/src/http/mod.rs", "use crate::vms::Connections;\n"),
            file(&format!("{vms}/mod.rs"), "//! crate::http\nuse super::http::Reply;\n"),
            file(
                &format!("{vms}/rows.rs"),
                "use crate::{\n    http::{Reply, vms},\n    pools,\n};\nfn f() { super::super::claims::g(); \"crate::http\"; }\n\
                 #[cfg(test)]\nmod tests { use crate::http::Reply; }\n",
            ),
            file("crates/hearth-server/src/pools/mod.rs", ""),
            file("crates/hearth-server/src/claims.rs", ""),
        ];
        assert_eq!(
            said(upward(&files)),
            [
                format!("{vms}/mod.rs:2: vms imports http, which is above it"),
                format!("{vms}/rows.rs:2: vms imports http, which is above it"),
                format!("{vms}/rows.rs:3: vms imports pools, which is above it"),
                format!("{vms}/rows.rs:5: vms imports claims, which is above it"),
            ]
        );
    }

    #[test]
    fn room_without_a_place_in_the_order_is_refused() {
        let files = [
            file(
                "crates/hearth-server/src/attic.rs",
                "use crate::vms::Connections;\nuse crate::wake;\n",
            ),
            file("crates/hearth-server/src/vms.rs", ""),
            file("crates/hearth-server/src/wake.rs", ""),
        ];
        assert_eq!(
            said(upward(&files)),
            ["crates/hearth-server/src/attic.rs:1: the room attic has no place in the order"]
        );
    }

    #[test]
    fn circle_of_neighbours_is_refused_and_a_chain_is_not() {
        let core = |room: &str, text: &str| file(&format!("crates/hearth-core/src/{room}.rs"), text);
        let chain = [core("a", "use crate::b;"), core("b", "use crate::c;"), core("c", "")];
        assert!(circles(&chain).is_empty());
        let circle = [
            core("a", "use crate::b;"),
            core("b", "use crate::c;"),
            core("c", "use crate::a;"),
        ];
        assert_eq!(circles(&circle).len(), 3);
        let server = |room: &str, text: &str| file(&format!("crates/hearth-server/src/{room}.rs"), text);
        let beside = [server("repos", "use crate::vms;"), server("vms", "use crate::repos;")];
        assert!(upward(&beside).is_empty());
        assert_eq!(circles(&beside).len(), 2);
    }
}
