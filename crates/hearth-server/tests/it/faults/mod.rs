//! The fault loop: one life of a project, told again for every call of the driver and every write of the store in it, and each
//! time that one fails, or fails although it took effect, or the server dies there. In the end rows and VMs agree, no claim is
//! lost or double, and nothing is left over.

mod process;
mod scenario;

use std::collections::BTreeMap;

use futures::StreamExt as _;
use hearth_drivers::fake::{Fault, FaultKind, FaultMoment, Verb};
use hearth_server::{WriteFault, WriteMoment};

use crate::harness::install_tls;
use scenario::{Point, Scenario};

/// Stories at once: most of the time each of them waits.
const AT_ONCE: usize = 24;
/// Every pass of the loop asks for the list of VMs, and how many passes there are is chance: so many of them are tried.
const PASSES: u64 = 20;
/// In the ordinary run every so many-eth point is tried, as many of each kind; `HEARTH_FAULTS_EVERY=1` tries all of them,
/// `HEARTH_FAULTS_ONLY=claims.rs` those whose name holds this.
const EVERY: usize = 37;

/// What happens at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum How {
    FailsBefore,
    FailsAfter,
    DiesBefore,
    DiesAfter,
}

impl How {
    const ALL: [Self; 4] = [Self::FailsBefore, Self::FailsAfter, Self::DiesBefore, Self::DiesAfter];

    fn call(self, verb: Verb, call: u64) -> Point {
        let (kind, moment) = match self {
            Self::FailsBefore => (FaultKind::Retry, FaultMoment::Before),
            Self::FailsAfter => (FaultKind::Unknown, FaultMoment::After),
            Self::DiesBefore => (FaultKind::Kill, FaultMoment::Before),
            Self::DiesAfter => (FaultKind::Kill, FaultMoment::After),
        };
        Point::Driver(Fault {
            verb,
            call,
            kind,
            moment,
        })
    }

    fn write(self, site: &str, write: u64) -> Point {
        let (moment, kills) = match self {
            Self::FailsBefore => (WriteMoment::Before, false),
            Self::FailsAfter => (WriteMoment::After, false),
            Self::DiesBefore => (WriteMoment::Before, true),
            Self::DiesAfter => (WriteMoment::After, true),
        };
        Point::Write(WriteFault {
            site: site.to_owned(),
            write,
            moment,
            kills,
        })
    }
}

/// Every point, after a look at a life without a fault.
async fn points(http: reqwest::Client) -> Vec<(&'static str, How, Point)> {
    let message = Scenario::run(http, Point::Nowhere).await;
    let mut points = Vec::new();
    for (verb, calls) in message.driver.all_calls() {
        println!("{verb:?}: {calls} calls");
        let tried = if verb == Verb::List { calls.min(PASSES) } else { calls };
        for call in 1..=tried {
            points.extend(How::ALL.map(|how| ("call", how, how.call(verb, call))));
        }
    }
    for (site, writes) in message.writes.counts() {
        println!("{site}: {writes} writes");
        for write in 1..=writes {
            points.extend(How::ALL.map(|how| ("write", how, how.write(&site, write))));
        }
    }
    points
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_or_dies_nothing_is_lost_double_or_left() {
    install_tls();
    let http = reqwest::Client::new();
    let all = points(http.clone()).await;
    let every = std::env::var("HEARTH_FAULTS_EVERY").map_or(EVERY, |every| every.parse().unwrap());
    let only = std::env::var("HEARTH_FAULTS_ONLY").unwrap_or_default();
    let all: Vec<_> = all
        .into_iter()
        .filter(|(_, _, point)| format!("{point:?}").contains(&only))
        .collect();
    let (known, begun) = (all.len(), std::time::Instant::now());
    let chosen: Vec<_> = all.into_iter().step_by(every).collect();
    let mut scenarios = futures::stream::iter(chosen)
        .map(|(what, how, point)| {
            let name = format!("{point:?}");
            let message = tokio::spawn(Scenario::run(http.clone(), point));
            async move { (what, how, name, message.await.map(|message| message.hit)) }
        })
        .buffer_unordered(AT_ONCE)
        .enumerate();
    let mut counts: BTreeMap<(&str, How), (usize, usize)> = BTreeMap::new();
    let mut broken = Vec::new();
    while let Some((before, (what, how, name, hit))) = scenarios.next().await {
        let (tried, reached) = counts.entry((what, how)).or_default();
        *tried += 1;
        match hit {
            Ok(hit) => *reached += usize::from(hit),
            Err(error) => {
                println!("broken: {name}: {error}");
                broken.push(format!("{name}: {error}"));
            }
        }
        let done = before + 1;
        // All points take an hour of two processors: what is known by then is not lost when it is ended.
        if done.is_multiple_of(100) {
            println!(
                "{done} points tried, {} broke something, {:?}",
                broken.len(),
                begun.elapsed()
            );
        }
    }
    println!("{known} points, every {every}. of them in {:?}:", begun.elapsed());
    for ((what, how), (tried, reached)) in &counts {
        println!("  {what} {how:?}: {tried} tried, {reached} reached");
    }
    assert!(
        broken.is_empty(),
        "{} points broke something: {broken:#?}",
        broken.len()
    );
    let (tried, reached) = counts.values().fold((0, 0), |sum, of| (sum.0 + of.0, sum.1 + of.1));
    // How often a lease is renewed or a step is shown again depends on who was first.
    assert!(
        reached * 4 >= tried * 3,
        "only {reached} of {tried} points were reached"
    );
}
