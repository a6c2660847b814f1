//! `cargo xtask dist`: what a person installs: a tarball, a Debian package, the list of what is compiled in, and the sums of all three.

mod deb;
mod sbom;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::{agent, process, workspace};

/// Shells, and what the file with their completion is called.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "bash-completion/completions/hearth"),
    ("zsh", "zsh/vendor-completions/_hearth"),
    ("fish", "fish/vendor_completions.d/hearth.fish"),
];

/// `cargo xtask dist`.
#[derive(Debug, Args)]
pub(crate) struct DistArgs {
    /// The profile to build the program with
    #[arg(long, default_value = "release")]
    profile: String,
    /// Take this program, which is built already
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// The revision of the Debian package, behind the version
    #[arg(long, default_value = "1")]
    revision: String,
}

/// What everything is made of.
struct Release {
    version: String,
    revision: String,
    program: PathBuf,
    folder: PathBuf,
}

/// Builds everything; the folder that holds it.
pub(crate) fn run(args: &DistArgs) -> Result<PathBuf> {
    let program = match &args.program {
        Some(program) => fs::canonicalize(program)?,
        None => build(&args.profile)?,
    };
    let folder = workspace::target().join("dist");
    fs::create_dir_all(&folder)?;
    let version = read(Command::new(&program).arg("--version"))?;
    let version = version.trim().rsplit(' ').next().unwrap_or_default().to_owned();
    let release = Release {
        version,
        revision: args.revision.clone(),
        program,
        folder: folder.clone(),
    };
    let files = [
        release.tarball()?,
        deb::package(&release)?,
        sbom::list_crates(&release)?,
    ];
    sums(&folder, &files)?;
    for file in &files {
        println!("{}", file.display());
    }
    Ok(folder)
}

fn build(profile: &str) -> Result<PathBuf> {
    let agent = agent::build()?;
    process::run(
        workspace::cargo_with_agent(&agent)
            .args(["build", "--locked", "--package", "hearth", "--profile"])
            .arg(profile),
    )?;
    let folder = if profile == "dev" { "debug" } else { profile };
    Ok(workspace::target().join(folder).join("hearth"))
}

impl Release {
    /// A folder that is made anew below the folder of what is built.
    fn work(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder.join("work").join(name);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// The program, its pages, completions, units and an example of a config file, as below `/usr`.
    fn install(&self, root: &Path, units: &str) -> Result<()> {
        copy(&self.program, &root.join("bin/hearth"), 0o755)?;
        let man = root.join("share/man/man1");
        process::run(Command::new(&self.program).arg("man").arg(&man))?;
        for (shell, path) in COMPLETIONS {
            // They call the program that printed them; what is installed is found by its name.
            let text = read(Command::new(&self.program).args(["completion", shell]))?;
            let text = text.replace(&*self.program.to_string_lossy(), "hearth");
            ensure!(
                !text.contains(&*workspace::root().to_string_lossy()),
                "the completion for {shell} names a path of this machine"
            );
            write(&root.join("share").join(path), &text, 0o644)?;
        }
        for unit in ["hearth.service", "hearth.socket"] {
            copy(
                &workspace::root().join("deploy/systemd").join(unit),
                &root.join(units).join(unit),
                0o644,
            )?;
        }
        Ok(())
    }

    fn example(&self) -> Result<String> {
        read(Command::new(&self.program).args(["config", "example"]))
    }

    fn tarball(&self) -> Result<PathBuf> {
        let name = format!("hearth-{}-{}-linux", self.version, std::env::consts::ARCH);
        let work = self.work("tarball")?;
        let root = work.join(&name);
        self.install(&root, "share/hearth/systemd")?;
        write(&root.join("share/hearth/hearth.toml"), &self.example()?, 0o644)?;
        for file in ["LICENSE", "README.md", "CHANGELOG.md"] {
            copy(&workspace::root().join(file), &root.join(file), 0o644)?;
        }
        let file = self.folder.join(format!("{name}.tar.gz"));
        process::run(
            Command::new("tar")
                .args([
                    "--create",
                    "--gzip",
                    "--sort=name",
                    "--owner=0",
                    "--group=0",
                    "--numeric-owner",
                    "--mtime=@0",
                ])
                .arg("--file")
                .arg(&file)
                .arg("--directory")
                .args([&work, Path::new(&name)]),
        )?;
        Ok(file)
    }
}

/// What a program prints; it must succeed.
fn read(command: &mut Command) -> Result<String> {
    let output = command.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{} did not succeed", process::shown(command));
    Ok(String::from_utf8(output.stdout)?)
}

fn copy(from: &Path, to: &Path, mode: u32) -> Result<()> {
    fs::create_dir_all(to.parent().unwrap_or(to))?;
    fs::copy(from, to).with_context(|| format!("{} cannot be copied", from.display()))?;
    Ok(fs::set_permissions(to, fs::Permissions::from_mode(mode))?)
}

fn write(to: &Path, text: &str, mode: u32) -> Result<()> {
    fs::create_dir_all(to.parent().unwrap_or(to))?;
    fs::write(to, text)?;
    Ok(fs::set_permissions(to, fs::Permissions::from_mode(mode))?)
}

/// Writes the sums where `sha256sum --check` finds them.
fn sums(folder: &Path, files: &[PathBuf]) -> Result<()> {
    let names = files.iter().filter_map(|file| file.file_name());
    let sums = read(Command::new("sha256sum").args(names).current_dir(folder))?;
    write(&folder.join("SHA256SUMS"), &sums, 0o644)
}
