//! Images of this machine: every data folder finds them, and none is removed while it is in use.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::support::{Ran, hearth, run};

/// A machine with a folder of shared images.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A folder that counts as an image.
    fn image(&self, images: &str, digit: char, name: &str) -> String {
        let digest = digit.to_string().repeat(64);
        let folder = self.path(images).join(&digest);
        fs::create_dir_all(&folder).unwrap();
        for file in ["rootfs.ext4", "vmlinuz", "initrd"] {
            fs::write(folder.join(file), "1234").unwrap();
        }
        let manifest = json!({
            "digest": digest, "name": name, "suite": "bookworm", "kernelVersion": "6.1", "packages": [],
            "agentSha256": "a", "agentVersion": "0.1.0", "base": "b", "created": "2026-01-01T00:00:00Z",
            "sizes": { "rootfs": 4, "rootfsOnDisk": 4, "vmlinuz": 4, "initrd": 4 },
        });
        fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
        digest
    }

    fn command(&self, data: &str, args: &[&str]) -> Command {
        let mut command = hearth(args);
        command
            .arg("--data-dir")
            .arg(self.path(data))
            .env("HEARTH_IMAGES", self.path("shared"))
            .env("HEARTH_RUNTIME_DIR", self.path("run"));
        command
    }

    fn run(&self, data: &str, args: &[&str]) -> Ran {
        run(self.command(data, args))
    }
}

fn listed(ran: &Ran) -> Value {
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    serde_json::from_str(&ran.stdout).unwrap()
}

fn write_record(path: &Path, image: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, json!({ "image": image }).to_string()).unwrap();
}

#[test]
fn image_of_the_machine_is_found_by_every_data_folder() {
    let machine = Machine::new();
    let none = machine.run("one", &["image", "list"]);
    assert!(
        // It is built into the folder that was named.
        none.stdout.contains(&format!(
            "hearth --data-dir {} image build",
            machine.path("one").display()
        )) && none.stdout.contains("shared"),
        "{}",
        none.stdout
    );
    let digest = machine.image("shared", 'a', "common");
    let own = machine.image("two/images", 'b', "own");
    let one = listed(&machine.run("one", &["image", "list", "--json"]));
    assert_eq!(one[0]["digest"], digest.as_str());
    assert_eq!(one.as_array().unwrap().len(), 1);
    let two = listed(&machine.run("two", &["image", "list", "--json"]));
    let digests: Vec<&Value> = two.as_array().unwrap().iter().map(|image| &image["digest"]).collect();
    assert!(
        digests.contains(&&json!(digest)) && digests.contains(&&json!(own)),
        "{two:#}"
    );
    let shown = machine.run("two", &["image", "list"]);
    assert!(
        shown.stdout.contains(machine.path("shared").to_str().unwrap()),
        "{}",
        shown.stdout
    );
}

#[test]
fn image_that_a_data_folder_uses_is_not_removed() {
    let machine = Machine::new();
    let digest = machine.image("shared", 'a', "common");
    // Another data folder has adopted it and made a VM and a template from it.
    let other = machine.path("other");
    fs::create_dir_all(machine.path("shared/used-by")).unwrap();
    fs::write(machine.path("shared/used-by/x"), other.to_str().unwrap()).unwrap();
    machine.image("other/images", 'a', "common");
    let record = other.join("vms/vm-1/vm.json");
    write_record(&record, &digest);
    write_record(&other.join("templates/t/manifest.json"), &digest);
    let remove = |more: &[&str]| machine.run("one", &[&["image", "remove", "common"], more].concat());
    for more in [&[][..], &["--force"]] {
        let refused = remove(more);
        assert_eq!(refused.code, 1, "{}", refused.stdout);
        for text in [
            "in use",
            "1 VM and 1 template",
            other.to_str().unwrap(),
            // The VMs are another server's.
            &format!("hearth --data-dir {} release", other.display()),
        ] {
            assert!(refused.stderr.contains(text), "{text}: {}", refused.stderr);
        }
    }
    fs::remove_dir_all(record.parent().unwrap()).unwrap();
    let refused = remove(&[]);
    assert!(
        refused.code == 1 && refused.stderr.contains("--force"),
        "{}",
        refused.stderr
    );
    let removed = remove(&["--force"]);
    assert_eq!(removed.code, 0, "{}", removed.stderr);
    assert!(!machine.path("shared").join(&digest).exists());
    assert!(
        !other.join("images").join(&digest).exists(),
        "its copy takes the same space"
    );
}

#[test]
fn copied_program_says_whether_it_has_the_agent() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("hearth");
    // By a program of its own: one that another test starts this moment would inherit our file, open for writing.
    let copied = Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_hearth"))
        .arg(&program)
        .status();
    assert!(copied.unwrap().success());
    let alone = |args: &[&str]| {
        let mut command = Command::new(&program);
        command
            .args(args)
            .arg("--data-dir")
            .arg(folder.path().join("data"))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HEARTH_IMAGES", folder.path().join("images"))
            .env("HEARTH_RUNTIME_DIR", folder.path().join("run"));
        run(command)
    };
    let findings: Value = serde_json::from_str(&alone(&["doctor", "--json"]).stdout).unwrap();
    let agent = findings
        .as_array()
        .unwrap()
        .iter()
        .find(|it| it["name"] == "agent")
        .unwrap();
    // An unknown release is refused after the agent was looked for and before anything is fetched.
    let built = alone(&["image", "build", "--suite", "no such release"]);
    assert_ne!(built.code, 0);
    if agent["status"] == "ok" {
        assert!(built.stderr.contains("no such release"), "{}", built.stderr);
    } else {
        assert!(agent["fix"].as_str().unwrap().contains("cargo xtask build"), "{agent}");
        assert!(
            built.stderr.contains("no agent inside") && built.stderr.contains("cargo xtask build"),
            "{}",
            built.stderr
        );
    }
}

#[test]
fn image_that_nobody_needs_is_pruned_and_no_other() {
    let machine = Machine::new();
    let old = machine.image("shared", 'a', "one");
    let used = machine.image("shared", 'b', "one");
    let new = machine.image("shared", 'c', "one");
    let alone = machine.image("shared", 'd', "alone");
    let other = machine.path("other");
    fs::create_dir_all(machine.path("shared/used-by")).unwrap();
    fs::write(machine.path("shared/used-by/x"), other.to_str().unwrap()).unwrap();
    write_record(&other.join("vms/vm-1/vm.json"), &used);
    let there = || {
        let is_there = |digest: &&String| machine.path("shared").join(digest).exists();
        [&old, &used, &new, &alone]
            .into_iter()
            .filter(is_there)
            .cloned()
            .collect::<Vec<_>>()
    };
    let dry = machine.run("one", &["image", "prune", "--dry-run"]);
    assert!(
        dry.code == 0 && dry.stdout.contains("would remove one aaaaaaaa"),
        "{}{}",
        dry.stdout,
        dry.stderr
    );
    let young = machine.run("one", &["image", "prune", "--older-than", "1h"]);
    assert!(young.stdout.contains("nothing to remove"), "{}", young.stdout);
    assert_eq!(there().len(), 4);
    let pruned = listed(&machine.run("one", &["image", "prune", "--json"]));
    assert_eq!(pruned.as_array().unwrap().len(), 1, "{pruned:#}");
    assert_eq!(
        (&pruned[0]["digest"], &pruned[0]["removed"]),
        (&json!(old), &json!(true))
    );
    assert_eq!(there(), [used, new, alone]);
    // Who else uses what lies behind a link is not known.
    fs::create_dir_all(machine.path("linked")).unwrap();
    std::os::unix::fs::symlink(machine.path("shared"), machine.path("linked/images")).unwrap();
    let refused = machine.run("linked", &["image", "prune"]);
    assert!(
        refused.code == 1 && refused.stderr.contains("behind the link"),
        "{}",
        refused.stderr
    );
}
