//! Files that were made to do harm: each ends in a sentence that names the file and the place, at once.

use std::time::{Duration, Instant};

use hearth_import::{Kind, MAX_FILE, read};

use crate::in_memory::InMemory;

const DEVCONTAINER: &str = ".devcontainer/devcontainer.json";
const COPILOT: &str = ".github/workflows/copilot-setup-steps.yml";

/// What is wrong, and nothing takes long.
fn fault(path: &str, content: &[u8]) -> String {
    fault_of(&InMemory::of(&[(path, content)]))
}

fn fault_of(files: &InMemory) -> String {
    let began = Instant::now();
    let fault = read(files, "/home/app").unwrap_err().to_string();
    assert!(began.elapsed() < Duration::from_secs(5), "{fault}");
    assert!(fault.len() < 400, "{fault}");
    fault
}

#[test]
fn broken_syntax_is_named_with_line_and_column() {
    let json = fault(DEVCONTAINER, b"{\n  \"image\": ]\n}");
    assert!(
        json.starts_with(".devcontainer/devcontainer.json, line 2, column 12: "),
        "{json}"
    );
    let yaml = fault(COPILOT, b"jobs:\n  a: [1\n  b: {");
    assert!(yaml.starts_with(&format!("{COPILOT}, line ")), "{yaml}");
    let toml = fault("mise.toml", b"[tools]\nnode = \n");
    assert!(toml.starts_with("mise.toml, line 2, column 8: "), "{toml}");
    assert_eq!(
        fault(".tool-versions", b"node\n"),
        ".tool-versions, line 1: names no version"
    );
    let docker = fault("Dockerfile", b"FROM debian\nRUN true\nFORM x\n");
    assert_eq!(docker, "Dockerfile, line 3: `FORM` is no instruction of a Dockerfile");
    assert!(fault("Dockerfile", b"RUN true\n").ends_with("line 1: the first instruction must be FROM"));
}

#[test]
fn wrong_types_are_named_with_their_place_and_without_their_content() {
    for (path, text, says) in [
        (
            DEVCONTAINER,
            "[1]",
            "devcontainer.json: is a list, and must be an object",
        ),
        (
            DEVCONTAINER,
            r#"{"postCreateCommand": 7}"#,
            "postCreateCommand: is a number, and must be a text",
        ),
        (
            DEVCONTAINER,
            r#"{"postCreateCommand": {"a": ["x", {"s3cret": 1}]}}"#,
            "postCreateCommand.a[1]: is an object, and must be a text",
        ),
        (
            DEVCONTAINER,
            r#"{"image": ["s3cret"]}"#,
            "image: is a list, and must be a text",
        ),
        (
            DEVCONTAINER,
            r#"{"hostRequirements": {"memory": "s3cret"}}"#,
            "hostRequirements.memory: must be a size like 8gb",
        ),
        (
            DEVCONTAINER,
            r#"{"build": {"dockerfile": "none"}}"#,
            "build.dockerfile: there is no .devcontainer/none in the repository",
        ),
        (
            DEVCONTAINER,
            r#"{"features": {"./none": {}}}"#,
            "features../none: there is no .devcontainer/none/install.sh in the repository",
        ),
        (
            COPILOT,
            "jobs: {copilot-setup-steps: {steps: {a: 1}}}",
            "jobs.copilot-setup-steps.steps: is an object, and must be a list",
        ),
        (
            COPILOT,
            "- s3cret",
            "copilot-setup-steps.yml: is a list, and must be an object",
        ),
        (
            ".cursor/environment.json",
            r#"{"ports": [{"port": "s3cret"}]}"#,
            "ports[0].port: must be a whole number",
        ),
        (
            ".cursor/environment.json",
            r#"{"terminals": [{"name": "a"}]}"#,
            "terminals[0]: has no command",
        ),
        (
            "mise.toml",
            "tools = 's3cret'",
            "tools: is a text, and must be an object",
        ),
        (
            "mise.toml",
            "[tools]\nnode = true",
            "tools.node: is true or false, and must be a version",
        ),
    ] {
        let fault = fault(path, text.as_bytes());
        assert!(fault.ends_with(says), "{fault}");
        assert!(!fault.contains("s3cret"), "{fault}");
    }
}

#[test]
fn depth_and_size_are_bounded() {
    let deep = |open: &str, close: &str| format!("{{\"a\": {}{}}}", open.repeat(20_000), close.repeat(20_000));
    let json = fault(DEVCONTAINER, deep("[", "]").as_bytes());
    assert!(json.contains("epth") && json.contains("line 1"), "{json}");
    let yaml = fault(COPILOT, "[".repeat(20_000).as_bytes());
    assert!(yaml.starts_with(COPILOT), "{yaml}");
    let toml = fault("mise.toml", format!("a = {}", "[".repeat(20_000)).as_bytes());
    assert!(toml.starts_with("mise.toml, line 1"), "{toml}");
    let huge = fault(DEVCONTAINER, &vec![b' '; usize::try_from(MAX_FILE).unwrap() + 1]);
    assert_eq!(
        huge,
        ".devcontainer/devcontainer.json: is 257 KiB long; at most 256 KiB are read"
    );
    let many: String = (0..500).map(|at| format!("\"c{at}\": \"true\",")).collect();
    let many = fault(
        DEVCONTAINER,
        format!("{{\"postCreateCommand\": {{{many}}}}}").as_bytes(),
    );
    assert!(
        many.ends_with("the set-up would have 500 commands; at most 200 are taken"),
        "{many}"
    );
}

#[test]
fn little_is_not_made_much_of() {
    let long = "x".repeat(4000);
    let many = "$A".repeat(30_000);
    let text = format!("ARG A={long}\nFROM debian{many}\n");
    assert!(fault("Dockerfile", text.as_bytes()).ends_with("line 2: becomes longer than 64 KiB"));
    let text = format!("FROM debian\nARG A={long}\nENV B={many}\n");
    assert!(fault("Dockerfile", text.as_bytes()).ends_with("line 3: becomes longer than 64 KiB"));
    let text = format!("FROM debian\nARG A={long}{long}\n");
    let says = fault("Dockerfile", text.as_bytes());
    assert!(
        says.ends_with("line 2: at most 50 build arguments of 4096 bytes are read"),
        "{says}"
    );
    // Values that name each other stay what they are.
    let each: String = (0..40)
        .map(|at| format!("ARG A{at}=\"$A{0}$A{0}\"\n", at + 1))
        .collect();
    let text = format!("FROM debian\n{each}ENV B=$A0\nRUN true\n");
    let imported = read(&InMemory::of(&[("Dockerfile", text.as_bytes())]), "/home/app").unwrap();
    assert!(
        imported.settings.hooks.setup[0]
            .command()
            .starts_with("export B=\"$A1$A1\";")
    );
    let steps: String = (0..300).map(|_| "      - run: x\n").collect();
    let text = format!("jobs:\n  copilot-setup-steps:\n    steps:\n{steps}");
    assert!(fault(COPILOT, text.as_bytes()).ends_with("has 300 steps; at most 200 are read"));
}

#[test]
fn anchors_make_neither_circles_nor_much_of_little() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for at in 1..10 {
        let before = format!("*a{}, ", at - 1).repeat(10);
        bomb.push_str(&format!("a{at}: &a{at} [{before}]\n"));
    }
    let fault_of_bomb = fault(COPILOT, bomb.as_bytes());
    assert!(
        fault_of_bomb.starts_with(&format!("{COPILOT}, line ")),
        "{fault_of_bomb}"
    );
    let circle = fault(COPILOT, b"jobs: &a\n  copilot-setup-steps: *a\n");
    assert!(circle.starts_with(&format!("{COPILOT}, line ")), "{circle}");
}

#[test]
fn other_encodings_links_and_ways_out_are_refused() {
    let says = |content: &[u8]| fault(DEVCONTAINER, content);
    assert!(says(b"\xff\xfe{\0}\0").ends_with(": is in UTF-16; save it as UTF-8"));
    assert!(says(b"{\n\"image\": \"\xff\"}").ends_with(": is not UTF-8: line 2 holds other bytes"));
    assert!(says(b"{\0}").ends_with(": holds a zero byte, so it is no text"));
    for place in [DEVCONTAINER, ".devcontainer"] {
        let mut files = InMemory::of(&[("readme", b"x")]);
        files.others.insert(place.to_owned(), Kind::Link);
        let fault = fault_of(&files);
        assert!(
            fault.starts_with(DEVCONTAINER) && fault.ends_with("is a symbolic link, or behind one; none is followed"),
            "{fault}"
        );
    }
    for out in ["../../etc/passwd", "/etc/passwd", "a/../../../b"] {
        let fault = says(format!(r#"{{"build": {{"dockerfile": "{out}"}}}}"#).as_bytes());
        assert!(
            fault.ends_with("build.dockerfile: leads out of the repository; only its own files are read"),
            "{fault}"
        );
    }
    let fault = says(br#"{"features": {"./../../x": {}}}"#);
    assert!(
        fault.ends_with("leads out of the repository; only its own files are read"),
        "{fault}"
    );
    // What would leave the words it stands in is a word of the shell's; a user with such a name is none.
    let text = br#"{"postCreateCommand": ["echo", "a'; touch /x; '$(touch /y)"], "remoteUser": "a; touch /z"}"#;
    let imported = read(&InMemory::of(&[(DEVCONTAINER, text)]), "/home/app").unwrap();
    let commands: Vec<_> = imported
        .settings
        .hooks
        .setup
        .iter()
        .map(|hook| hook.command())
        .collect();
    assert_eq!(commands.len(), 1);
    assert_eq!(
        shlex::split(commands[0]).unwrap(),
        ["echo", "a'; touch /x; '$(touch /y)"]
    );
}
