//! What comes along with a repository: Git LFS and submodules. The fake VM holds files and notes commands; what it was sent is laid
//! into a folder, and real git and git-lfs do there what they would do in the VM, with the sources out of reach.

use std::path::{Path, PathBuf};
use std::process::Command;

use hearth_drivers::fake::{FakeDriver, FakeOptions};
use serde_json::{Value, json};

use crate::harness::{SOON, Server, commit, git, git_repo, repo_folder};

/// Git's configuration in an image with git-lfs.
const SYSTEM: &str = "[filter \"lfs\"]\n\tclean = git-lfs clean -- %f\n\tsmudge = git-lfs smudge -- %f\n\t\
                      process = git-lfs filter-process\n\trequired = true\n[safe]\n\tdirectory = *\n";

/// Lets `*.bin` of a repository go to Git LFS.
pub fn use_lfs(folder: &Path) {
    git(folder, &["lfs", "install", "--local", "--skip-repo"]);
    commit(
        folder,
        &[(".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n")],
        "lfs",
    );
}

/// Sets a submodule of a repository to another repository's head; what git itself would leave, without its clone.
pub fn set_submodule(folder: &Path, name: &str, path: &str, url: &str, of: &Path) -> String {
    let head = git(of, &["rev-parse", "HEAD"]);
    for (key, value) in [("path", path), ("url", url)] {
        let key = format!("submodule.{name}.{key}");
        git(folder, &["config", "--file", ".gitmodules", &key, value]);
    }
    std::fs::create_dir_all(folder.join(path)).unwrap();
    let entry = format!("160000,{head},{path}");
    git(folder, &["update-index", "--add", "--cacheinfo", &entry]);
    commit(folder, &[], "submodule");
    head
}

/// Three repositories: `app` has a file in Git LFS and the submodule `lib`, which has the submodule `core`, with another such file.
struct Sources {
    app: PathBuf,
    lib: PathBuf,
    core: PathBuf,
    url: String,
}

fn sources(server: &Server) -> Sources {
    let make = |name: &str| git_repo(server.folder.path(), name, &[("readme", name)]);
    let (url, lib, core) = (make("app"), make("lib"), make("core"));
    let [app, lib, core] = [&url, &lib, &core].map(|url| repo_folder(url));
    use_lfs(&core);
    commit(&core, &[("core.bin", "the core's large file")], "large");
    set_submodule(&lib, "vendor/core", "vendor/core", "../core", &core);
    use_lfs(&app);
    commit(&app, &[("app.bin", "the app's large file")], "large");
    set_submodule(&app, "my lib.x", "deps/lib", &format!("file://{}", lib.display()), &lib);
    Sources { app, lib, core, url }
}

fn repos(url: &str) -> Value {
    json!([{ "repoFullName": "acme/app", "branch": "main", "url": url }])
}

/// What git does with what a VM was sent.
struct Guest {
    folder: tempfile::TempDir,
}

impl Guest {
    /// Lays out what the VM was sent and runs git's commands there, while nothing can be fetched.
    fn of(server: &Server, driver: &FakeDriver, vm: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("system"), SYSTEM).unwrap();
        let guest = Self { folder };
        let vm = vm.as_str().unwrap().parse().unwrap();
        for (path, content) in driver.files(&vm) {
            let path = guest.place(&path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, content).unwrap();
            // The fake VM keeps no empty folders, and git knows a repository by this one.
            if path.ends_with("config") {
                std::fs::create_dir_all(path.with_file_name("refs")).unwrap();
            }
        }
        let (here, away) = (server.folder.path().join("repos"), server.folder.path().join("away"));
        std::fs::rename(&here, &away).unwrap();
        for spec in driver.commands(&vm) {
            let argv = match (&spec.argv, &spec.shell) {
                (Some(argv), None) if argv[0] == "git" => argv.clone(),
                (None, Some(shell)) if spec.cwd.as_deref() == Some("/home/app") => {
                    ["bash", "-c", shell].map(str::to_owned).to_vec()
                }
                _ => continue,
            };
            let argv = argv.iter().map(|word| match word.strip_prefix("/home/") {
                Some(_) => guest.place(word).display().to_string(),
                None => word.clone(),
            });
            let argv: Vec<_> = argv.collect();
            let cwd = guest.place(spec.cwd.as_deref().unwrap_or("/home"));
            let output = guest
                .command(&argv[0], &cwd)
                .args(&argv[1..])
                .envs(spec.env.clone())
                .output();
            let output = output.unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{argv:?}: {said}");
        }
        std::fs::rename(&away, &here).unwrap();
        guest
    }

    fn place(&self, path: &str) -> PathBuf {
        self.folder.path().join(path.trim_start_matches('/'))
    }

    fn command(&self, program: &str, cwd: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(cwd)
            .env("GIT_CONFIG_SYSTEM", self.folder.path().join("system"))
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("HOME", self.folder.path());
        command
    }

    fn git(&self, path: &str, words: &[&str]) -> String {
        let output = self.command("git", &self.place(path)).args(words).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.place(path)).unwrap_or_default()
    }
}

#[tokio::test]
#[ignore = "needs git-lfs (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn lfs_files_and_nested_submodules_come_with_the_clone_and_git_is_content_without_a_network() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let sources = sources(&server);
    let project = server
        .project(json!({ "name": "p", "repos": repos(&sources.url) }))
        .await;
    let boot = server.test_boot(SOON, &project, json!({})).await;
    assert_eq!(boot["status"], "ready", "{boot:#}");
    let guest = Guest::of(&server, &driver, &boot["instanceId"]);
    assert_eq!(guest.read("/home/app/app.bin"), "the app's large file");
    assert_eq!(guest.read("/home/app/deps/lib/readme"), "lib");
    assert_eq!(
        guest.read("/home/app/deps/lib/vendor/core/core.bin"),
        "the core's large file"
    );
    let heads = [&sources.lib, &sources.core].map(|folder| git(folder, &["rev-parse", "HEAD"]));
    let status = guest.git("/home/app", &["submodule", "status", "--recursive"]);
    let lines: Vec<_> = status.lines().collect();
    assert!(lines[0].starts_with(&format!(" {} deps/lib", heads[0])), "{status}");
    assert!(
        lines[1].starts_with(&format!(" {} deps/lib/vendor/core", heads[1])),
        "{status}"
    );
    assert_eq!(guest.git("/home/app", &["status", "--porcelain"]), "");
    assert!(guest.git("/home/app", &["lfs", "ls-files"]).ends_with("* app.bin"));
    // A user in the VM can fetch as from any clone.
    let core = guest.git("/home/app/deps/lib/vendor/core", &["remote", "get-url", "origin"]);
    assert_eq!(core, format!("file://{}", sources.core.display()));
    for path in ["/home/app", "/home/app/deps/lib", "/home/app/deps/lib/vendor/core"] {
        let head = guest.git(path, &["symbolic-ref", "refs/remotes/origin/HEAD"]);
        assert_eq!(head, "refs/remotes/origin/main", "{path}");
    }
    server.stop().await;
}

#[tokio::test]
#[ignore = "needs git-lfs (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn a_project_can_do_without_either_and_changes_its_mind() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let sources = sources(&server);
    let project = json!({ "name": "p", "repos": repos(&sources.url), "lfs": false, "submodules": false });
    let project = server.project(project).await;
    let view = server.get(&format!("{project}/view")).await;
    assert_eq!(
        (&view["repos"][0]["lfs"], &view["repos"][0]["submodules"]),
        (&json!(false), &json!(false))
    );
    let boot = server.test_boot(SOON, &project, json!({})).await;
    let guest = Guest::of(&server, &driver, &boot["instanceId"]);
    assert!(guest.read("/home/app/app.bin").starts_with("version https://git-lfs"));
    assert_eq!(std::fs::read_dir(guest.place("/home/app/deps/lib")).unwrap().count(), 0);
    assert_eq!(guest.git("/home/app", &["status", "--porcelain"]), "");
    server.patch(&project, json!({ "lfs": true })).await;
    let boot = server.test_boot(SOON, &project, json!({})).await;
    let guest = Guest::of(&server, &driver, &boot["instanceId"]);
    assert_eq!(guest.read("/home/app/app.bin"), "the app's large file");
    let mut own = repos(&sources.url);
    own[0]["submodules"] = json!(true);
    server
        .patch(&project, json!({ "repos": own, "submodules": false, "lfs": false }))
        .await;
    let boot = server.test_boot(SOON, &project, json!({})).await;
    let guest = Guest::of(&server, &driver, &boot["instanceId"]);
    assert!(guest.read("/home/app/app.bin").starts_with("version https://git-lfs"));
    assert_eq!(guest.read("/home/app/deps/lib/readme"), "lib");
    assert!(
        guest
            .read("/home/app/deps/lib/vendor/core/core.bin")
            .starts_with("version https://git-lfs")
    );
    server.stop().await;
}

#[tokio::test]
#[ignore = "needs git-lfs (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn what_cannot_be_brought_fails_the_clone_with_its_name_and_url() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let sources = sources(&server);
    let project = server
        .project(json!({ "name": "p", "repos": repos(&sources.url) }))
        .await;
    let parent = server.folder.path().join("repos");
    let set = |name: &str, url: &str| {
        let place = format!("deps/{name}");
        let gone = format!("160000,{},{place}", "1".repeat(40));
        git(
            &sources.app,
            &[
                "config",
                "--file",
                ".gitmodules",
                &format!("submodule.{name}.path"),
                &place,
            ],
        );
        git(
            &sources.app,
            &["config", "--file", ".gitmodules", &format!("submodule.{name}.url"), url],
        );
        std::fs::create_dir_all(sources.app.join(&place)).unwrap();
        git(&sources.app, &["update-index", "--add", "--cacheinfo", &gone]);
        commit(&sources.app, &[], "broken");
    };
    let base = git(&sources.app, &["rev-parse", "HEAD"]);
    let core = format!("file://{}", sources.core.display());
    let nowhere = format!("file://{}/nowhere", parent.display());
    for (name, url, says) in [
        (
            "gone",
            "../core",
            format!(
                "the submodule `gone` at deps/gone of acme/app has no commit {} ({core})",
                "1".repeat(40)
            ),
        ),
        (
            "lost",
            "../nowhere",
            format!("cannot fetch the submodule `lost` at deps/lost of acme/app from {nowhere}: "),
        ),
        (
            "evil",
            "ext::sh -c id",
            "the submodule `evil` at deps/evil of acme/app (ext::sh -c id) cannot be fetched: ".to_owned(),
        ),
    ] {
        set(name, url);
        let boot = server.test_boot(SOON, &project, json!({})).await;
        assert_eq!(boot["summary"]["failedStep"], "clone_repo", "{boot:#}");
        let reason = boot["failureReason"].as_str().unwrap();
        assert!(reason.starts_with(&says), "{reason}");
        assert!(
            ![".;", ".,", "..", ":;"]
                .iter()
                .any(|two| reason.replace("../", "").contains(two)),
            "{reason}"
        );
        git(&sources.app, &["reset", "--quiet", "--hard", &base]);
    }
    commit(&sources.app, &[("lost.bin", "nobody has it")], "lost");
    std::fs::remove_dir_all(sources.app.join(".git/lfs/objects")).unwrap();
    let boot = server.test_boot(SOON, &project, json!({})).await;
    let reason = boot["failureReason"].as_str().unwrap();
    assert!(
        reason.starts_with("what Git LFS keeps of acme/app cannot be fetched from "),
        "{reason}"
    );
    assert!(reason.contains("(missing: `lost.bin`)"), "{reason}");
    assert!(reason.contains("missing object"), "{reason}");
    server.stop().await;
}

#[tokio::test]
#[ignore = "needs git-lfs (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn a_claim_that_moves_a_checkout_moves_what_comes_along() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let sources = sources(&server);
    let project = server
        .project(json!({ "name": "p", "repos": repos(&sources.url) }))
        .await;
    let pool = format!("{project}/warm-pool");
    server.patch(&pool, json!({ "enabled": true, "targetSize": 1 })).await;
    server.until_full(SOON, &project, 1).await;
    git(&sources.app, &["checkout", "--quiet", "-b", "topic"]);
    commit(&sources.core, &[("core.bin", "another core")], "core");
    set_submodule(&sources.lib, "vendor/core", "vendor/core", "../core", &sources.core);
    set_submodule(&sources.app, "my lib.x", "deps/lib", "../lib", &sources.lib);
    let extra = repo_folder(&git_repo(server.folder.path(), "extra", &[("readme", "extra")]));
    set_submodule(&sources.app, "extra", "extra", "../extra", &extra);
    commit(&sources.app, &[("app.bin", "another app"), ("new.bin", "new")], "topic");
    let head = git(&sources.app, &["rev-parse", "HEAD"]);
    git(&sources.app, &["checkout", "--quiet", "main"]);
    let claimed = server
        .post(&format!("{pool}/claim"), json!({ "branch": "topic" }))
        .await;
    assert_eq!(claimed["repos"][0]["commit"], head, "{claimed:#}");
    let guest = Guest::of(&server, &driver, &claimed["instanceId"]);
    for (file, content) in [
        ("app.bin", "another app"),
        ("new.bin", "new"),
        ("extra/readme", "extra"),
        ("deps/lib/vendor/core/core.bin", "another core"),
    ] {
        assert_eq!(guest.read(&format!("/home/app/{file}")), content, "{file}");
    }
    assert_eq!(guest.git("/home/app", &["rev-parse", "HEAD"]), head);
    assert_eq!(guest.git("/home/app", &["status", "--porcelain"]), "");
    let status = guest.git("/home/app", &["submodule", "status", "--recursive"]);
    assert!(status.lines().all(|line| line.starts_with(' ')), "{status}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn in_a_real_vm_lfs_submodules_commits_and_other_users_work_without_the_sources() {
    let server = crate::vms::server_with(|_| {}).await;
    let sources = sources(&server);
    let project = server
        .project(json!({ "name": "p", "repos": repos(&sources.url), "vmSize": "small" }))
        .await;
    let boot = server.test_boot(crate::harness::BOOT, &project, json!({})).await;
    assert_eq!(boot["status"], "ready", "{boot:#}");
    let id = boot["id"].as_str().unwrap();
    for (command, prints) in [
        (
            "cat app/app.bin app/deps/lib/vendor/core/core.bin",
            "the app's large filethe core's large file",
        ),
        ("cd app && git submodule status --recursive | cut -c1 | sort -u", " \n"),
        ("cd app && git lfs ls-files | cut -d' ' -f2-", "* app.bin\n"),
        ("cd app && git status --porcelain", ""),
        (
            "useradd dev && su dev -c 'cd /home/app && git log -1 --format=%s && git submodule status | cut -c1'",
            "submodule\n \n",
        ),
        (
            "cd app && git commit -q --allow-empty -m mine && git log -1 --format='%an <%ae>'",
            "hearth <hearth@hearth.invalid>\n",
        ),
        (
            "for tool in vi vim nano less tmux htop rsync zip file xxd lsof ping dig fd; do command -v $tool >/dev/null || echo $tool; done",
            "",
        ),
    ] {
        let reply = crate::vms::exec(&server, id, command).await;
        assert_eq!(reply["stdout"], prints, "{command}: {reply:#}");
    }
    crate::vms::clean_up(server, &project).await;
}
