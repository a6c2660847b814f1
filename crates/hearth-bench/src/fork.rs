//! Rows at the driver, without a server: forks against bare restores, and the least that a claim can cost.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hearth_api::ids::VmId;
use hearth_drivers::qemu::{Accel, QemuDriver, QemuOptions};
use hearth_drivers::{CheckpointKey, CheckpointSpec, Driver, ForkPurpose, ForkSpec, ForkStart, VmShape, VmSpec};
use hearth_guest::client::{AgentClient, NewIdentity};
use hearth_guest::{ExecEnd, ExecSpec};

use crate::bare::Recipe;
use crate::report::{Unit, names};
use crate::{Bench, Row, say, vm};

/// The size of a small VM.
const SHAPE: VmShape = VmShape {
    vcpus: 1,
    memory_mib: 1024,
    disk_gib: 20,
};
/// A guest without hardware virtualisation on a busy machine needs about 15 s to its agent.
const BOOT: Duration = Duration::from_secs(180);
/// As for a base of the server's.
const IDLE: Duration = Duration::from_secs(3);
/// Names the template; it is the only one there.
const KEY: &str = "be0cbe0cbe0cbe0c";
/// VMs that the commands at the driver run in.
const WORKERS: usize = 4;
/// As much of a command's output as is looked at, bytes.
const OUTPUT: usize = 4096;

pub(crate) async fn measure(bench: &mut Bench) -> Result<()> {
    say("rows at the driver: booting and freezing a VM");
    let data = bench.args.folder.join("driver");
    let driver = QemuDriver::open(QemuOptions {
        data_dir: data.clone(),
        images_dir: bench.args.images.clone(),
        shared_images: Vec::new(),
        installation: format!("bench-{}", std::process::id()),
        accel: Accel::Auto,
        vm_user: None,
        gateway: std::fs::canonicalize(&bench.args.hearth)?,
        dns_upstream: None,
    })?;
    let done = with_driver(bench, &driver, &data).await;
    let ended = end(&driver).await;
    done.and(ended)
}

async fn end(driver: &QemuDriver) -> Result<()> {
    for vm in driver.list().await? {
        driver.destroy(&vm.id).await?;
    }
    for info in driver.checkpoints().await? {
        driver.remove_checkpoint(&info.key).await?;
    }
    Ok(driver.shutdown_network().await?)
}

async fn with_driver(bench: &mut Bench, driver: &QemuDriver, data: &Path) -> Result<()> {
    let key = template(driver).await?;
    let kvm = driver.kvm_verdict().is_some_and(|verdict| verdict.usable);
    let how = if kvm { "KVM" } else { "software emulation" };
    bench.report.note(Row::Fork, format!("the VMs run under {how}"));
    let images = std::fs::canonicalize(&bench.args.images)?;
    let data = std::fs::canonicalize(data)?;
    let template = data.join("templates").join(key.as_str());
    let first = fork(driver, &key).await?.0;
    let words = vm::words(vm::pid(&data.join("vms").join(first.as_str()))?)?;
    let recipe = Recipe::new(&words, first.as_str(), &images, &template, SHAPE.disk_gib)?;
    driver.destroy(&first).await?;
    let bare = data.join("bare");
    if bench.wants(Row::Fork) {
        one_by_one(bench, driver, &key, &recipe, &bare).await?;
    }
    if bench.wants_any(&[Row::Fork, Row::Memory]) {
        in_a_row(bench, driver, &key, &recipe, &bare).await?;
    }
    if bench.wants(Row::Claim) {
        commands(bench, driver, &key).await?;
    }
    Ok(())
}

/// A booted, idle VM, frozen.
async fn template(driver: &QemuDriver) -> Result<CheckpointKey> {
    let (id, key) = (VmId::generate(), KEY.parse::<CheckpointKey>()?);
    driver
        .create(&VmSpec {
            id: id.clone(),
            image: None,
            shape: SHAPE,
            checkpointable: true,
        })
        .await?;
    let agent = connect(driver, &id).await?;
    let settle = ExecSpec {
        shell: Some("systemctl is-system-running --wait || true; sync".to_owned()),
        ..ExecSpec::default()
    };
    agent.exec_collect(&settle, OUTPUT).await?;
    driver
        .checkpoint(
            &id,
            &CheckpointSpec {
                key: key.clone(),
                parent: None,
                labels: BTreeMap::new(),
                idle: IDLE,
            },
        )
        .await?;
    driver.destroy(&id).await?;
    Ok(key)
}

async fn connect(driver: &QemuDriver, id: &VmId) -> Result<AgentClient> {
    let stream = driver.connect(id).await?;
    let deadline = tokio::time::Instant::now() + BOOT;
    AgentClient::connect(stream, deadline)
        .await
        .context("a VM's agent does not answer")
}

async fn fork(driver: &QemuDriver, key: &CheckpointKey) -> Result<(VmId, Duration)> {
    let id = VmId::generate();
    let spec = ForkSpec {
        id: id.clone(),
        from: key.clone(),
        purpose: ForkPurpose::Instance,
        shape: Some(SHAPE),
        start: ForkStart::Paused,
    };
    let begin = Instant::now();
    driver.fork(&spec).await?;
    Ok((id, begin.elapsed()))
}

/// One of these, one of those; each is gone before the next comes.
async fn one_by_one(
    bench: &mut Bench,
    driver: &QemuDriver,
    key: &CheckpointKey,
    recipe: &Recipe,
    folder: &Path,
) -> Result<()> {
    say("row 1: forks and bare restores, in turns");
    let (mut forks, mut bares) = (Vec::new(), Vec::new());
    for _ in 0..bench.counts.forks {
        let (id, took) = fork(driver, key).await?;
        forks.push(took);
        driver.destroy(&id).await?;
        let (restored, took) = recipe.restore(folder).await?;
        bares.push(took);
        restored.end().await?;
    }
    bench.report.times(Row::Fork, names::FORK, &forks);
    bench.report.times(Row::Fork, names::BARE, &bares);
    bench
        .report
        .ratio(Row::Fork, (Row::Fork, names::FORK), (Row::Fork, names::BARE));
    Ok(())
}

/// As for a pool: all stay.
async fn in_a_row(
    bench: &mut Bench,
    driver: &QemuDriver,
    key: &CheckpointKey,
    recipe: &Recipe,
    folder: &Path,
) -> Result<()> {
    let count = bench.counts.in_a_row;
    let (begin, mut ids) = (Instant::now(), Vec::new());
    for _ in 0..count {
        ids.push(fork(driver, key).await?.0);
    }
    let forks = begin.elapsed();
    for id in &ids {
        driver.destroy(id).await?;
    }
    let (begin, mut restored) = (Instant::now(), Vec::new());
    for at in 0..count {
        restored.push(recipe.restore(&folder.join(at.to_string())).await?.0);
    }
    let bares = begin.elapsed();
    let mut private = Vec::new();
    for one in &restored {
        private.push(vm::memory(one.pid()?)?.private);
    }
    for one in restored {
        one.end().await?;
    }
    if bench.wants(Row::Fork) {
        bench.report.times(Row::Fork, names::FORKS_IN_A_ROW, &[forks]);
        bench.report.times(Row::Fork, names::BARE_IN_A_ROW, &[bares]);
    }
    if bench.wants(Row::Memory) {
        bench.report.values(Row::Memory, names::BARE_MEMORY, Unit::Mib, private);
    }
    Ok(())
}

/// The least that a claim and a command can cost: what the driver and the agent need for it.
async fn commands(bench: &mut Bench, driver: &QemuDriver, key: &CheckpointKey) -> Result<()> {
    say("row 2: the same at the driver, without a server");
    let mut workers = Vec::new();
    let mut firsts = Vec::new();
    for _ in 0..WORKERS {
        let (id, _) = fork(driver, key).await?;
        let begin = Instant::now();
        driver.resume(&id).await?;
        let agent = connect(driver, &id).await?;
        let identity = NewIdentity {
            rsa_host_key: None,
            hostname: id.to_string(),
            machine_id: None,
        };
        agent.activate(&identity).await?;
        run(&agent, &argv()).await?;
        firsts.push(begin.elapsed());
        driver.pause(&id).await?;
        workers.push((id, agent));
    }
    let what = "at the driver: a fork's first life (resume, identity, /bin/true)";
    bench.report.times(Row::Claim, what, &firsts);
    for (what, spec) in [(names::DRIVER_TRUE, argv()), (names::DRIVER_CAT, cat())] {
        let mut took = Vec::new();
        for at in 0..bench.counts.claims {
            let (id, agent) = &workers[at % workers.len()];
            let begin = Instant::now();
            driver.resume(id).await?;
            agent.sync_clock(Duration::from_secs(1)).await?;
            run(agent, &spec).await?;
            took.push(begin.elapsed());
            driver.pause(id).await?;
        }
        bench.report.times(Row::Claim, what, &took);
    }
    for (id, _) in &workers {
        driver.destroy(id).await?;
    }
    Ok(())
}

fn argv() -> ExecSpec {
    ExecSpec {
        argv: Some(vec!["/bin/true".to_owned()]),
        ..ExecSpec::default()
    }
}

fn cat() -> ExecSpec {
    ExecSpec {
        shell: Some("cat /etc/hostname".to_owned()),
        ..ExecSpec::default()
    }
}

async fn run(agent: &AgentClient, spec: &ExecSpec) -> Result<()> {
    let output = agent.exec_collect(spec, OUTPUT).await?;
    match output.end {
        ExecEnd::Exited { code: Some(0), .. } => Ok(()),
        other => bail!("a command in a VM ended with {other:?}"),
    }
}
