//! A simulated day of claims, faults, pushes and restarts in the history of a real store: history, charts and advice say of it what the
//! simulator counted.

use std::sync::Arc;
use std::time::Duration;

use hearth_api::claim::ClaimSource;
use hearth_api::explain::MissCause;
use hearth_api::ids::ProjectId;
use hearth_drivers::Driver;
use hearth_drivers::fake::{FakeDriver, FakeOptions};
use hearth_sim::{PoolTold, Tale};
use hearth_store::{EventRow, Seal, SealError, Store};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::harness::{Server, options};
use crate::pages::Person;

const POOLS: usize = 6;
/// Of all pools together.
const CLAIMS_PER_SECOND: f64 = 0.15;
const HOURS: u32 = 24;
/// Events that are written together.
const BATCH: usize = 1000;
/// Most records of one page of the history.
const PAGE: usize = 1000;
/// How far the advice's share of warm claims may be from what was counted: it replays the claims against a pool of one size, and the pools of
/// that day were resized.
const MODEL_TOLERANCE: f64 = 0.05;

/// Nothing of a simulated day is secret.
#[derive(Debug)]
struct NothingSealed;

impl Seal for NothingSealed {
    fn seal(&self, _: &str, _: &str) -> Result<Vec<u8>, SealError> {
        Err(SealError::TooLong)
    }

    fn open_value(&self, _: &str, _: &[u8]) -> Result<String, SealError> {
        Err(SealError::WrongKey)
    }
}

/// Writes a tale into the history; its pools are these projects.
async fn write(store: &Store, tale: &Tale, projects: &[ProjectId]) {
    let upto = store.history_cursor().await.unwrap();
    for events in tale.events.chunks(BATCH) {
        let rows: Vec<EventRow> = events
            .iter()
            .map(|event| {
                let pool: usize = event.project_id.as_str()[1..].parse().unwrap();
                let mut event = event.clone();
                event.project_id = projects[pool].clone();
                EventRow {
                    tenant: "default".to_owned(),
                    event,
                }
            })
            .collect();
        store
            .write_history(&rows, &std::collections::HashMap::default(), upto)
            .await
            .unwrap();
    }
}

/// All claims of a project, page by page.
async fn claims(server: &Server, project: &ProjectId) -> Vec<Value> {
    let mut all: Vec<Value> = Vec::new();
    loop {
        let before = all
            .last()
            .map(|claim| format!("&before={}", claim["claimedAt"].as_str().unwrap()));
        let path = format!("/projects/{project}/history?limit={PAGE}{}", before.unwrap_or_default());
        let page = server.get(&path).await["claims"].as_array().unwrap().clone();
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

/// The sum of a table's column.
fn sum_of(page: &str, column: &str) -> u64 {
    let label = format!("data-label=\"{column}\">");
    let cells = page.split(&label).skip(1);
    cells
        .map(|cell| cell.split('<').next().unwrap().parse::<u64>().unwrap())
        .sum()
}

/// How many claims the page counts for a cause.
fn of_cause(page: &str, cause: MissCause) -> u64 {
    let row = page.split_once(&format!("<code>{}</code>", cause.as_str()));
    row.map_or(0, |(_, row)| sum_of(row.split("</tr>").next().unwrap(), "Claims"))
}

fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap()
}

fn told(told: &PoolTold, source: ClaimSource) -> u64 {
    told.served.get(&source).copied().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn simulated_day_of_faults_is_told_by_history_charts_and_advice_as_it_was_counted() {
    let until = Timestamp::now() - SignedDuration::from_mins(1);
    let tale = tokio::task::spawn_blocking(move || hearth_sim::tell(POOLS, CLAIMS_PER_SECOND, HOURS, 1, until));
    let tale = tale.await.unwrap().unwrap();
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let mut options = options(folder.path());
    // The file is written to while no server has it.
    options.database = None;
    let start = |options| {
        let made: Arc<dyn Driver> = Arc::new(FakeDriver::new(1, FakeOptions::default()));
        Server::start(folder.clone(), options, move |_| Ok(made))
    };
    let server = start(options).await.unwrap();
    let mut projects = Vec::new();
    for (number, pool) in tale.pools.iter().enumerate() {
        let path = server.project(json!({ "name": format!("p{number}") })).await;
        let target = json!({ "enabled": false, "targetSize": pool.target.max(1) });
        server.patch(&format!("{path}/warm-pool"), target).await;
        projects.push(path.rsplit('/').next().unwrap().parse::<ProjectId>().unwrap());
    }
    let (_, options) = server.stop().await;
    let database = options.data_dir.join("hearth.db");
    let store = Store::open(&database, Arc::new(NothingSealed), None).await.unwrap();
    write(&store, &tale, &projects).await;
    store.close().await;

    let server = start(options).await.unwrap();
    let person = Person::sign_in(&server, &server.token).await;
    let (mut not_warm, mut kinds) = (0, std::collections::BTreeSet::new());
    for (project, pool) in projects.iter().zip(&tale.pools) {
        let counted: u64 = pool.served.values().sum();
        let claims = claims(&server, project).await;
        assert_eq!(claims.len() as u64, counted, "{project}");
        // Every claim that was not warm has its one cause, and no other has one.
        for claim in &claims {
            assert_eq!(claim["source"] == "ready", claim["cause"].is_null(), "{claim}");
        }
        let page = person.page(&format!("/charts?range=7d&project={project}")).await;
        for source in ClaimSource::ALL {
            assert_eq!(
                sum_of(&page, source.as_str()),
                told(pool, source),
                "{project} {source:?}"
            );
        }
        for cause in MissCause::ALL {
            let counted = pool.causes.get(&cause).copied().unwrap_or_default();
            assert_eq!(of_cause(&page, cause), counted, "{project} {cause:?}");
            if counted > 0 {
                kinds.insert(cause);
            }
            not_warm += counted;
        }

        let advice = server
            .get(&format!("/projects/{project}/warm-pool/advice?days=2"))
            .await;
        let bypassing = pool.causes.get(&MissCause::Bypass).copied().unwrap_or_default();
        assert_eq!(advice["claims"], counted - bypassing, "{advice}");
        let median = millis(pool.refills[pool.refills.len() / 2]);
        assert!(
            advice["refillMs"].as_u64().unwrap().abs_diff(median) <= 1,
            "{median}: {advice}"
        );
        // The model knows of no push, fault and restart: what it says is how often claims drain the pool.
        let of = |cause| pool.causes.get(&cause).copied().unwrap_or_default();
        let warm = told(pool, ClaimSource::Ready) as f64;
        let share = warm / (warm + of(MissCause::Drained) as f64);
        let hit_rate = advice["present"]["hitRate"].as_f64().unwrap();
        println!(
            "target {}: {counted} claims, {warm} warm, {:?}; not drained {share:.3}, replayed {hit_rate:.3}",
            pool.target, pool.causes
        );
        // A pool that keeps none is no pool for the advice.
        assert!(
            pool.target == 0 || (share - hit_rate).abs() <= MODEL_TOLERANCE,
            "counted {share}: {advice}"
        );
        // The page of the advice says the same.
        let page = person.page(&format!("/projects/{project}/advice?days=2")).await;
        assert!(page.contains(&format!("{:.0} %", hit_rate * 100.0)), "{page}");
    }
    // A day in which all went well proves nothing.
    assert!(not_warm > 100 && kinds.len() >= 4, "{not_warm} {kinds:?}");
    server.stop().await;
}
