//! Scenarios: a world and what happens to it as text, the decisions of every pass as text beside it.
//!
//! A line `+3s` lets time go by; after every line there is a pass. `cargo insta review` (or `INSTA_UPDATE=always`) takes new
//! answers over.

use std::fmt::Write as _;

use hearth_api::ids::InstanceId;
use hearth_core::plan::{Action, Blocker, Decision, Reason};
use hearth_core::purpose::Purpose;
use hearth_core::state::{FailureKind, InstanceState};
use hearth_core::world::{InstanceWorld, VmPresence, Work};
use jiff::SignedDuration;

use crate::model::{Model, recipe};

#[test]
fn scenarios_are_decided_as_written() {
    insta::with_settings!({
        snapshot_path => "../scenarios",
        prepend_module_to_snapshot => false,
        omit_expression => true,
    }, {
        insta::glob!("../scenarios", "*.txt", |path| {
            let text = std::fs::read_to_string(path).unwrap();
            insta::assert_snapshot!("answer", answer(&text));
        });
    });
}

fn answer(text: &str) -> String {
    let mut model = Model::new();
    let mut out = String::new();
    let mut began = false;
    for line in text.lines() {
        if line.is_empty() || line.starts_with('#') {
            writeln!(out, "{line}").unwrap();
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        began |= !matches!(words[0], "limits" | "pool" | "instance" | "orphan");
        writeln!(out, "{line}").unwrap();
        happen(&mut model, &words, &mut out);
        if began {
            let decision = model.pass();
            tell(&decision, &mut out);
            stand(&model, &mut out);
        }
    }
    out
}

fn happen(model: &mut Model, words: &[&str], out: &mut String) {
    let id = |word: &str| word.parse::<InstanceId>().unwrap();
    match *words {
        ["limits", ref pairs @ ..] => {
            for pair in pairs.chunks(2) {
                let number = pair[1].parse().unwrap();
                let limits = &mut model.world.limits;
                match pair[0] {
                    "vms" => limits.max_vms = number,
                    "tenant" => limits.tenant_vms = Some(number),
                    "memory" => limits.memory_mib = number as u64,
                    "provisions" => limits.concurrent_provisions = number,
                    "forks" => limits.concurrent_forks = number,
                    "tokens" => limits.tokens = number,
                    other => panic!("no limit {other}"),
                }
            }
        }
        ["pool", name, "target", target, ref rest @ ..] => add_pool(model, name, target, rest),
        ["instance", pool, state, ref rest @ ..] => add_instance(model, pool, state, rest),
        ["orphan", vm] => model.world.orphans.push(vm.parse().unwrap()),
        ["pass"] => {}
        ["ready", ref which @ ..] => which.iter().for_each(|which| model.finish(&id(which), None)),
        ["fail", which, kind] => model.finish(&id(which), Some(kind.parse().unwrap())),
        ["lose", which] => model.row(&id(which)).vm = VmPresence::Stopped,
        ["release", which] => model.move_to(&id(which), InstanceState::Deleting),
        ["claim", pool] => claim(model, pool, out),
        ["give-up", which] => model.row(&id(which)).release(),
        ["restart"] => model.restart(),
        ["driver", "silent"] => model.world.drivers_observed = false,
        ["driver", "answers"] => model.world.drivers_observed = true,
        [pool, "target", target] => of(model, pool).target = target.parse().unwrap(),
        [pool, "enabled"] => of(model, pool).enabled = true,
        [pool, "disabled"] => of(model, pool).enabled = false,
        [pool, "wants", name] => of(model, pool).recipe = long(name),
        ["test", pool] => {
            let at = model.pool(&pool.parse().unwrap());
            let wanted = model.world.pools[at].recipe.clone();
            model.add_row(at, &wanted).purpose = Purpose::Test { use_cache: true };
        }
        [time] => model.world.now += time.trim_start_matches('+').parse::<SignedDuration>().unwrap(),
        ref other => panic!("nothing is called {other:?}"),
    }
}

fn of<'a>(model: &'a mut Model, pool: &str) -> &'a mut hearth_core::world::PoolWorld {
    let at = model.pool(&pool.parse().unwrap());
    &mut model.world.pools[at]
}

fn add_pool(model: &mut Model, name: &str, target: &str, rest: &[&str]) {
    let pool = model.add_pool(name, target.parse().unwrap());
    let mut templates = Vec::new();
    let mut words = rest.iter();
    while let Some(word) = words.next() {
        let mut next = || *words.next().unwrap();
        match *word {
            "max" => pool.max_vms = Some(next().parse().unwrap()),
            "age" => pool.max_age_seconds = next().parse::<SignedDuration>().unwrap().as_secs(),
            "wants" => pool.recipe = long(next()),
            "template" => templates.push(long(next())),
            other => panic!("no pool is {other}"),
        }
    }
    model.templates.insert(name.parse().unwrap(), templates);
}

fn add_instance(model: &mut Model, pool: &str, state: &str, rest: &[&str]) {
    let at = model.pool(&pool.parse().unwrap());
    let wanted = model.world.pools[at].recipe.clone();
    let now = model.world.now;
    let row = model.add_row(at, &wanted);
    row.state = state.parse().unwrap();
    (row.work, row.vm) = match row.state {
        InstanceState::Provisioning => (Work::Here, VmPresence::Running),
        InstanceState::Claimed => (Work::Idle, VmPresence::Running),
        _ => (Work::Idle, VmPresence::Paused),
    };
    let mut words = rest.iter();
    while let Some(word) = words.next() {
        match *word {
            "of" => row.recipe = long(words.next().unwrap()),
            "since" => row.state_since = now - words.next().unwrap().parse::<SignedDuration>().unwrap(),
            "lease" => row.lease_ends_at = Some(now + words.next().unwrap().parse::<SignedDuration>().unwrap()),
            "test" => row.purpose = Purpose::Test { use_cache: true },
            "setting-up" => row.forked = false,
            "unstarted" => row.work = Work::Unstarted,
            other => panic!("no instance is {other}"),
        }
    }
}

/// As the server does: a ready one, or else one of its own.
fn claim(model: &mut Model, pool: &str, out: &mut String) {
    let at = model.pool(&pool.parse().unwrap());
    let free = |i: &&InstanceWorld| i.state == InstanceState::Ready && i.purpose == Purpose::Pool;
    let pool = &model.world.pools[at];
    if let Some(row) = pool.instances.iter().find(free) {
        let id = row.id.clone();
        writeln!(out, "  (gets {id})").unwrap();
        model.move_to(&id, InstanceState::Claimed);
        model.row(&id).vm = VmPresence::Running;
        return;
    }
    let serves = pool.previous.as_ref().map_or(&pool.recipe, |last| &last.recipe).clone();
    let row = model.add_row(at, &serves);
    row.purpose = Purpose::Claim;
    writeln!(out, "  (waits for {})", row.id).unwrap();
}

/// `a2`: set-up a, second commit.
fn long(short: &str) -> String {
    let set_up = short.chars().next().unwrap();
    recipe(set_up, short[1..].parse().unwrap())
}

fn short(long: &str) -> String {
    format!("{}{}", &long[..1], long[12..].trim_start_matches('0'))
}

fn tell(decision: &Decision, out: &mut String) {
    for action in &decision.actions {
        writeln!(out, "  {}", told(action)).unwrap();
    }
    for (project, blocker) in &decision.blockers {
        writeln!(out, "  hold {project}: {}", held(blocker)).unwrap();
    }
}

fn told(action: &Action) -> String {
    match action {
        Action::Create {
            project,
            recipe,
            reason,
        } => format!("create {project} by {}: {}", short(recipe), why(*reason)),
        Action::Build { project } => format!("build what {project} wants"),
        Action::Start { instance } => format!("start {instance}"),
        Action::Fail { instance, failure, .. } => format!("fail {instance}: {}", failure.reason),
        Action::Retire { instance, reason, .. } => format!("retire {instance}: {}", why(*reason)),
        Action::Delete { instance, reason, .. } => format!("delete {instance}: {}", why(*reason)),
        Action::Teardown { instance } => format!("go on ending {instance}"),
        Action::Pause { instance } => format!("rest {instance}"),
        Action::DestroyOrphan { vm } => format!("destroy {vm}, which no row names"),
    }
}

fn why(reason: Reason) -> &'static str {
    match reason {
        Reason::BelowTarget => "below the target",
        Reason::ReplaceStale => "a stale one goes soon",
        Reason::Surplus => "one too many",
        Reason::MakesRoom => "makes room for a build",
        Reason::PoolDisabled => "the pool is disabled",
        Reason::Stale => "stale",
        Reason::LeaseEnded => "its lease ended",
        Reason::TestTimeUp => "the test's time is up",
        Reason::TestVmEnded => "the test's VM has ended",
        Reason::FailedVmNotNeeded => "the record needs no VM",
        Reason::RecordExpired => "the record is old",
        Reason::Built => "it has made its template",
        Reason::HalfMade => "half made",
        Reason::Cancelled => "cancelled",
    }
}

fn held(blocker: &Blocker) -> String {
    match blocker {
        Blocker::HostVms { max } => format!("the host has its {max} VMs"),
        Blocker::HostMemory {
            wants_mib,
            left_mib,
            kept_mib,
        } => format!("{wants_mib} MiB wanted, {left_mib} MiB left, {kept_mib} MiB kept for a build"),
        Blocker::TenantVms { max } => format!("the tenant has its {max} VMs"),
        Blocker::ProjectVms => "the project has its VMs".to_owned(),
        Blocker::InTheMaking => "so many are in the making".to_owned(),
        Blocker::Missing { kind, failures } => format!("{} missing, looked {failures} times", kind.as_str()),
        Blocker::BreakerOpen { failures } => format!("the set-up failed {failures} times"),
        Blocker::HostTrouble { failures } => format!("the host failed {failures} times"),
    }
}

/// What there is after the pass; records without a VM say nothing new.
fn stand(model: &Model, out: &mut String) {
    for pool in &model.world.pools {
        let with_vm = pool.instances.iter().filter(|i| i.state != InstanceState::Archived);
        let rows: Vec<String> = with_vm.map(row).collect();
        let rows = if rows.is_empty() {
            "nothing".to_owned()
        } else {
            rows.join(", ")
        };
        writeln!(out, "  {} = {rows}", pool.project).unwrap();
    }
}

fn row(row: &InstanceWorld) -> String {
    let mut text = format!("{} {} {}", row.id, row.state.as_str(), short(&row.recipe));
    let notes = [
        (row.purpose.is_test(), " test"),
        (row.purpose == Purpose::Renewal, " build"),
        (row.purpose == Purpose::Claim, " reserved"),
        (row.work == Work::Unstarted, " unstarted"),
        (row.work == Work::Abandoned, " abandoned"),
        (row.vm == VmPresence::Stopped, " stopped"),
    ];
    text.extend(notes.into_iter().filter(|(is, _)| *is).map(|(_, note)| note));
    text.extend(row.failure.map(|kind: FailureKind| format!(" ({})", kind.as_str())));
    text
}
