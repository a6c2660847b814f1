//! Rubbish in: random bytes and random JSON to every route. Nothing panics, nothing is a 5xx, every refusal has its shape,
//! memory stays flat.

use std::time::Duration;

use hearth_drivers::Driver;
use hearth_drivers::fake::{FakeDriver, FakeOptions};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use reqwest::Method;
use serde_json::{Value, json};
use std::sync::Arc;

use crate::harness::{Server, options};

/// Requests in all.
const REQUESTS: u64 = 10_000;
/// Requests at once.
const WORKERS: u64 = 8;
/// What the process may grow between the first quarter and the end, MiB: caches fill, and a leak of 1 KiB per request would
/// show.
const MAY_GROW_MIB: u64 = 48;

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_requests_of_rubbish_are_refused_in_good_order() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let mut options = options(folder.path());
    options.requests_per_second = 0;
    options.longest_claim_wait = Duration::from_millis(50);
    let driver: Arc<dyn Driver> = Arc::new(FakeDriver::new(1, FakeOptions::default()));
    let server = Arc::new(Server::start(folder, options, move |_| Ok(driver)).await.unwrap());
    let (project, _) = server.full_pool(1).await;
    let claimed = server.post(&format!("{project}/warm-pool/claim"), json!({})).await;
    let document = server.get("/openapi.json").await;
    let known = Known {
        project: project.trim_start_matches("/projects/").to_owned(),
        instance: claimed["id"].as_str().unwrap().to_owned(),
        paths: document["paths"].as_object().unwrap().keys().cloned().collect(),
        keys: keys_of(&document["components"]["schemas"]),
    };
    let known = Arc::new(known);
    let quarter = REQUESTS / WORKERS / 4;
    let mut before = 0;
    for (from, to) in [(0, quarter), (quarter, REQUESTS / WORKERS)] {
        let workers = (0..WORKERS).map(|worker| {
            let (server, known) = (server.clone(), known.clone());
            tokio::spawn(async move {
                for number in from..to {
                    one(&server, &known, worker * REQUESTS + number).await;
                }
            })
        });
        for worker in workers.collect::<Vec<_>>() {
            worker.await.unwrap();
        }
        if before == 0 {
            before = resident_mib();
        }
    }
    let after = resident_mib();
    assert!(after <= before + MAY_GROW_MIB, "{before} MiB grew to {after} MiB");
    assert_eq!(server.get("/healthz").await["status"], "ok");
}

struct Known {
    project: String,
    instance: String,
    paths: Vec<String>,
    keys: Vec<String>,
}

async fn one(server: &Server, known: &Known, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut path = known.paths.choose(&mut rng).unwrap().clone();
    let whole = path.contains("{projectId}") && path.ends_with("{projectId}");
    path = path.replace("{projectId}", &id(&mut rng, &known.project));
    path = path.replace("{id}", &id(&mut rng, &known.instance));
    path = path.replace("{tokenId}", "tok_0").replace("{name}", &id(&mut rng, "A"));
    if rng.random_bool(0.2) {
        path.push_str(&format!(
            "?limit={}&status={}&cursor={}&cache=x",
            rng.random::<i8>(),
            text(&mut rng),
            text(&mut rng)
        ));
    }
    let methods = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    let mut method = methods.choose(&mut rng).unwrap().clone();
    if method == Method::DELETE && whole {
        // The project that the others need stays.
        method = Method::PATCH;
    }
    if path.ends_with("/release") {
        path.push('x');
    }
    let body: Vec<u8> = match rng.random_range(0..4) {
        0 => (0..rng.random_range(0..400)).map(|_| rng.random()).collect(),
        1 => format!("{}1{}", "[".repeat(300), "]".repeat(300)).into_bytes(),
        _ => serde_json::to_vec(&object(&mut rng, known, 0)).unwrap(),
    };
    let mut request = server.request(method.clone(), &path).body(body);
    if rng.random_bool(0.9) {
        request = request.header("content-type", "application/json");
    }
    let response = request.send().await.unwrap();
    let status = response.status();
    assert!(!status.is_server_error(), "{method} {path} (seed {seed}): {status}");
    if status.is_client_error() {
        let body: Value = response.json().await.unwrap();
        assert!(
            body["error"]["code"].is_string() && body["error"]["message"].is_string(),
            "{method} {path} (seed {seed}): {body}"
        );
    }
}

fn id(rng: &mut StdRng, real: &str) -> String {
    if rng.random_bool(0.7) {
        real.to_owned()
    } else {
        text(rng)
    }
}

/// A text that a URL can hold: strange characters are escaped.
fn text(rng: &mut StdRng) -> String {
    let length = rng.random_range(1..20);
    (0..length)
        .map(|_| format!("%{:02X}", rng.random_range(1..=255_u8)))
        .collect()
}

fn object(rng: &mut StdRng, known: &Known, depth: u32) -> Value {
    let count = rng.random_range(0..6);
    let pairs = (0..count).map(|_| (known.keys.choose(rng).unwrap().clone(), value(rng, known, depth + 1)));
    Value::Object(pairs.collect())
}

fn value(rng: &mut StdRng, known: &Known, depth: u32) -> Value {
    match rng.random_range(0..if depth > 4 { 7 } else { 9 }) {
        0 => Value::Null,
        1 => rng.random::<bool>().into(),
        2 => rng.random::<i64>().into(),
        3 => rng.random::<f64>().into(),
        4 => rng.random_range(0..200_i64).into(),
        5 => (0..rng.random_range(0..30))
            .map(|_| rng.random::<char>())
            .collect::<String>()
            .into(),
        6 => ["main", "acme/app", "small", "prefer", "admin", ""]
            .choose(rng)
            .copied()
            .into(),
        7 => (0..rng.random_range(0..5))
            .map(|_| value(rng, known, depth + 1))
            .collect::<Vec<_>>()
            .into(),
        _ => object(rng, known, depth),
    }
}

/// Every name of a property in the document.
fn keys_of(schemas: &Value) -> Vec<String> {
    let all = schemas.as_object().unwrap().values();
    let properties = all.filter_map(|schema| schema["properties"].as_object());
    properties.flat_map(|properties| properties.keys().cloned()).collect()
}

/// Memory that this process really has: Linux counts it in pages of 4 KiB.
fn resident_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4 / 1024
}
