//! Help and arguments that make no sense.

use crate::support::{hearth, run};

#[test]
fn help_tells_the_exit_codes_and_how_the_server_is_found() {
    let ran = run(hearth(&["--help"]));
    assert_eq!(ran.code, 0);
    for text in [
        "Exit codes:",
        "130",
        "HEARTH_URL",
        "HEARTH_TOKEN",
        "pool",
        "claim",
        "doctor",
    ] {
        assert!(ran.stdout.contains(text), "{text} is missing in:\n{}", ran.stdout);
    }
}

#[test]
fn every_command_has_help() {
    for args in [
        &["serve"][..],
        &["doctor"],
        &["image", "build"],
        &["image", "list"],
        &["project", "create"],
        &["project", "set"],
        &["setup", "show"],
        &["setup", "save"],
        &["env", "set"],
        &["pool", "set"],
        &["pool", "test"],
        &["claim"],
        &["instance"],
        &["exec"],
        &["run"],
        &["openapi"],
        &["release"],
        &["token", "create"],
    ] {
        let ran = run(hearth(&[args, &["--help"]].concat()));
        assert_eq!(ran.code, 0, "{args:?}: {}", ran.stderr);
        assert!(ran.stdout.contains("Usage:"), "{args:?}");
    }
}

#[test]
fn bad_arguments_end_with_2_and_say_how_to_write_them() {
    for (args, text) in [
        (
            &["pool", "set", "web", "--command", "curl https://example.org"][..],
            "'name: command'",
        ),
        (&["pool", "set", "web"], "nothing to set"),
        (
            &["pool", "set", "web", "--enabled", "--disabled"],
            "cannot be used with",
        ),
        (
            &["project", "create", "web", "--repo", "web"],
            "org/name[@branch][=URL]",
        ),
        (&["project", "create", "web", "--size", "tiny"], "small, medium, large"),
        (&["project", "set", "web"], "nothing to set"),
        (
            &["project", "set", "web", "--max-vms", "1", "--no-max-vms"],
            "cannot be used with",
        ),
        (&["project", "set", "web", "--max-vms", "-1"], "unexpected argument"),
        (&["project", "set", "web", "--max-vms=-1"], "invalid value"),
        (&["serve", "--size", "medium=0:1:1"], "medium=2:4096:20"),
        (&["serve", "--longest-claim-wait", "soon"], "like 90s, 10m, 1h or 30d"),
        (&["serve", "--requests-per-second", "many"], "invalid"),
        (&["setup", "save", "web", "/nonexistent"], "cannot be read"),
        (
            &["token", "create", "x", "--scope", "claim", "--expires", "soon"],
            "like 30d",
        ),
        (&["exec", "wpi_1"], "COMMAND"),
        (&["token", "create", "x", "--scope", "root"], "project:read"),
        (
            &["claim", "web", "--env", "NOT_SET_ANYWHERE"],
            "not set in your environment",
        ),
        (
            &["env", "set", "web", "A=1", "--from-file", "x"],
            "NAME without a value",
        ),
    ] {
        let ran = run(hearth(args));
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(text), "{args:?}: {}", ran.stderr);
        assert_eq!(ran.stdout, "", "{args:?}");
    }
}

#[test]
fn the_api_can_be_printed_without_a_server() {
    let ran = run(hearth(&["openapi"]));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.starts_with("{\n  ") && ran.stdout.ends_with("}\n"));
    let document: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    assert!(document["paths"]["/api/v1/projects"]["get"].is_object());
}
