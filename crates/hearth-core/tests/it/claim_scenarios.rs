//! Claims by scenario: a pool and what happens to it as text, what every claim does then as text below it.
//!
//! A line `+3s` lets time go by. `cargo insta review` (or `INSTA_UPDATE=always`) takes new answers over.

use std::time::Duration;

use hearth_api::claim::Miss;
use hearth_api::ids::InstanceId;
use hearth_core::claim::{Cause, ClaimOrder};

use crate::claim_model::{ClaimModel, Fault, State};

#[test]
fn claims_do_what_is_written() {
    insta::with_settings!({
        snapshot_path => "../claims",
        prepend_module_to_snapshot => false,
        omit_expression => true,
    }, {
        insta::glob!("../claims", "*.txt", |path| {
            let text = std::fs::read_to_string(path).unwrap();
            insta::assert_snapshot!("answer", answer(&text));
        });
    });
}

fn answer(text: &str) -> String {
    let mut model = ClaimModel::new();
    for line in text.lines() {
        model.told.push_str(line);
        model.told.push('\n');
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        happen(&mut model, &words);
    }
    model.told
}

fn happen(model: &mut ClaimModel, words: &[&str]) {
    let id = |word: &str| word.parse::<InstanceId>().unwrap();
    match *words {
        ["pool", "enabled"] => model.pool.enabled = true,
        ["pool", "disabled"] => model.pool.enabled = false,
        ["pool", "needs-repair"] => model.pool.needs_repair = true,
        ["most", most] => model.max_claims = Some(most.parse().unwrap()),
        ["target", recipe] => model.pool.target = recipe.to_owned(),
        ["template", recipe] => {
            model.pool.template = Some(recipe.to_owned());
            model.look_again();
        }
        ["vm", "ready", recipe] => {
            let id = model.add_vm(recipe, State::Ready);
            model.changed(&id);
        }
        ["vm", "making", recipe] => {
            model.add_vm(recipe, State::Making);
        }
        ["ready", which] => {
            model.vm(&id(which)).state = State::Ready;
            model.changed(&id(which));
        }
        ["silent", which] => model.vm(&id(which)).fault = Some(Fault::Silent),
        ["stuck", which] => model.vm(&id(which)).fault = Some(Fault::Stuck),
        ["fail", which, "set-up"] => model.remove(&id(which), Some(Cause::SetUp)),
        ["fail", which, "host"] => model.remove(&id(which), Some(Cause::Host)),
        ["remove", which] => model.remove(&id(which), None),
        ["claim", name, ref rest @ ..] => claim(model, name, rest),
        ["leave", name] => {
            let at = model.claims.iter().position(|claim| claim.name == *name).unwrap();
            model.go_away(at);
        }
        [time] => {
            let seconds = time.trim_start_matches('+').trim_end_matches('s');
            model.now += Duration::from_secs(seconds.parse().unwrap());
            model.look_again();
        }
        ref other => panic!("nothing is called {other:?}"),
    }
}

fn claim(model: &mut ClaimModel, name: &str, rest: &[&str]) {
    let mut order = ClaimOrder {
        strict: false,
        miss: Miss::Prefer,
        patience: Duration::ZERO,
    };
    let (mut key, mut request) = (None, 0);
    let mut words = rest.iter();
    while let Some(word) = words.next() {
        match *word {
            "strict" => order.strict = true,
            "require" => order.miss = Miss::Require,
            "bypass" => order.miss = Miss::Bypass,
            "waits" => {
                let seconds = words.next().unwrap().trim_end_matches('s');
                order.patience = Duration::from_secs(seconds.parse().unwrap());
            }
            "key" => key = Some(*words.next().unwrap()),
            "other" => request = 1,
            other => panic!("no claim is {other}"),
        }
    }
    model.add_claim(name, key, request, order);
}
