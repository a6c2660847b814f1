//! What must hold of every claim: of single decisions over random views, and over random courses of things (`claim_model`).

use std::time::Duration;

use hearth_api::claim::{ClaimSource, Miss};
use hearth_core::claim::{
    Cause, ClaimOrder, ClaimScope, ClaimView, Earlier, Failure, Held, Next, PoolView, QueueView, Ready, Refusal,
    Reserved, Take, next,
};
use hearth_core::plan::FORK_BUDGET;
use proptest::prelude::*;
use proptest::sample::select;

use crate::claim_model::{ClaimModel, Fate, Fault, State};

fn recipes() -> impl Strategy<Value = String> {
    select(vec!["a1", "a2", "b1"]).prop_map(str::to_owned)
}

fn seconds(most: u64) -> impl Strategy<Value = Duration> {
    (0..=most * 2).prop_map(|halves| Duration::from_millis(halves * 500))
}

fn orders() -> impl Strategy<Value = ClaimOrder> {
    let miss = select(vec![Miss::Prefer, Miss::Prefer, Miss::Require, Miss::Bypass]);
    let patience = prop_oneof![Just(Duration::ZERO), seconds(90)];
    (any::<bool>(), miss, patience).prop_map(|(strict, miss, patience)| ClaimOrder { strict, miss, patience })
}

fn causes() -> impl Strategy<Value = Cause> {
    select(vec![Cause::SetUp, Cause::Host, Cause::Host, Cause::Checkout])
}

fn pools() -> impl Strategy<Value = PoolView> {
    let ready = (0..3_usize, 0..3_usize).prop_map(|(target, old)| Ready {
        any: target + old,
        target,
    });
    let pool = (
        any::<bool>(),
        recipes(),
        prop::option::of(recipes()),
        ready,
        any::<bool>(),
    );
    pool.prop_map(|(enabled, target, template, ready, needs_repair)| PoolView {
        enabled,
        target,
        template,
        ready,
        needs_repair,
    })
}

fn views() -> impl Strategy<Value = ClaimView> {
    let earlier = prop_oneof![
        8 => Just(None),
        1 => select(vec![Earlier::OtherRequest, Earlier::Answered, Earlier::Ended, Earlier::Unfinished("i9".parse().unwrap())])
            .prop_map(Some),
    ];
    let queue = prop_oneof![
        (0..3_usize).prop_map(|waiting| QueueView::Outside { waiting }),
        (0..3_usize).prop_map(|ahead| QueueView::Inside { ahead }),
    ];
    let reserved = prop::collection::vec((recipes(), any::<bool>()), 0..3).prop_map(|all| {
        let all = all.into_iter().enumerate();
        let reserved = all.map(|(number, (recipe, ready))| Reserved {
            id: format!("i{number}").parse().unwrap(),
            recipe,
            ready,
        });
        reserved.collect::<Vec<_>>()
    });
    let ordered = prop::option::of(select(vec![ClaimSource::Fork, ClaimSource::Cold]));
    let failures = prop::collection::vec((causes(), seconds(60)), 0..4).prop_map(|mut all| {
        all.sort_by_key(|(_, at)| *at);
        let failures = all.into_iter().map(|(cause, at)| Failure {
            at,
            cause,
            reason: "it failed".to_owned(),
        });
        failures.collect::<Vec<_>>()
    });
    let view = (
        earlier,
        pools(),
        queue,
        reserved,
        ordered,
        any::<bool>(),
        (0..3_usize, failures, prop::option::of((0..4_u64, 1..4_u64))),
    );
    view.prop_map(
        |(earlier, pool, queue, reserved, ordered, has_waited, (unfit, failures, held))| ClaimView {
            earlier,
            held: held.map(|(now, most)| Held { now, most }),
            pool,
            queue,
            reserved,
            ordered,
            has_waited,
            unfit,
            failures,
        },
    )
}

/// Something that happens to a pool, drawn by number so that it always means something.
#[derive(Debug, Clone)]
enum Event {
    Claim {
        order: ClaimOrder,
        key: Option<u8>,
        request: u32,
    },
    Becomes {
        which: usize,
        ready: bool,
        cause: Option<Cause>,
    },
    IsMade {
        recipe: String,
        fault: Option<Fault>,
    },
    Leaves(usize),
    Released(usize),
    Target(String),
    Template(Option<String>),
    Enabled(bool),
    NeedsRepair(bool),
    Time(Duration),
}

fn events() -> impl Strategy<Value = Event> {
    let fault = prop::option::weighted(0.2, select(vec![Fault::Silent, Fault::Stuck]));
    let cause = prop::option::of(causes());
    prop_oneof![
        4 => (orders(), prop::option::of(0..3_u8), prop::bool::weighted(0.1)).prop_map(|(order, key, other)| Event::Claim {
            order, key, request: u32::from(other),
        }),
        6 => (any::<usize>(), prop::bool::weighted(0.8), cause).prop_map(|(which, ready, cause)| Event::Becomes {
            which, ready, cause,
        }),
        3 => (recipes(), fault).prop_map(|(recipe, fault)| Event::IsMade { recipe, fault }),
        2 => any::<usize>().prop_map(Event::Leaves),
        1 => any::<usize>().prop_map(Event::Released),
        1 => recipes().prop_map(Event::Target),
        1 => prop::option::of(recipes()).prop_map(Event::Template),
        1 => any::<bool>().prop_map(Event::Enabled),
        1 => any::<bool>().prop_map(Event::NeedsRepair),
        3 => seconds(30).prop_map(Event::Time),
    ]
}

fn happen(model: &mut ClaimModel, event: Event) {
    let pick = |model: &ClaimModel, which: usize, of: &dyn Fn(State) -> bool| {
        let fitting: Vec<_> = model.vms.iter().filter(|vm| of(vm.state)).collect();
        (!fitting.is_empty()).then(|| fitting[which % fitting.len()].id.clone())
    };
    match event {
        Event::Claim { order, key, request } => {
            let key = key.map(|key| format!("k{key}"));
            let name = format!("c{}", model.claims.len());
            model.add_claim(&name, key.as_deref(), request, order);
        }
        Event::Becomes { which, ready, cause } => {
            let Some(id) = pick(model, which, &|state| state == State::Making) else {
                return;
            };
            if ready {
                model.vm(&id).state = State::Ready;
                model.changed(&id);
            } else {
                model.remove(&id, cause);
            }
        }
        Event::IsMade { recipe, fault } => {
            let id = model.add_vm(&recipe, State::Making);
            model.vm(&id).fault = fault;
        }
        Event::Leaves(which) if !model.claims.is_empty() => model.go_away(which % model.claims.len()),
        Event::Leaves(_) => {}
        Event::Released(which) => {
            if let Some(id) = pick(model, which, &|state| matches!(state, State::Claimed(_))) {
                model.remove(&id, None);
            }
        }
        Event::Target(recipe) => model.pool.target = recipe,
        Event::Template(recipe) => model.pool.template = recipe,
        Event::Enabled(enabled) => model.pool.enabled = enabled,
        Event::NeedsRepair(needs) => model.pool.needs_repair = needs,
        Event::Time(length) => {
            model.now += length;
            model.look_again();
        }
    }
}

proptest! {
    #[test]
    fn every_step_keeps_the_promises(view in views(), order in orders(), now in seconds(120)) {
        let step = next(&view, &order, now);
        prop_assert_eq!(&step, &next(&view, &order, now));
        if view.earlier.is_some() {
            let settled = matches!(step, Next::Repeat | Next::Refuse(_) | Next::Take(Take::Unfinished(_)));
            prop_assert!(settled, "a second VM for one key: {:?}", step);
            return Ok(());
        }
        let full = view.held.is_some_and(|held| held.now >= held.most);
        prop_assert_eq!(full, step == Next::Refuse(Refusal::TooManyHeld));
        let inside = matches!(view.queue, QueueView::Inside { .. });
        let first = matches!(view.queue, QueueView::Outside { waiting: 0 } | QueueView::Inside { ahead: 0 });
        match &step {
            Next::Repeat | Next::Take(Take::Unfinished(_)) => prop_assert!(false, "there was no earlier one: {:?}", step),
            Next::Take(Take::Pool { only, .. }) => {
                prop_assert!(first && order.scope() != ClaimScope::Own);
                prop_assert_eq!(only.as_ref(), order.strict.then_some(&view.pool.target));
                prop_assert!(view.pool.ready.any > 0 && (!order.strict || view.pool.ready.target > 0));
            }
            Next::Take(Take::Reserved { id, .. }) => {
                let own = view.reserved.iter().find(|reserved| reserved.id == *id).unwrap();
                prop_assert!(own.ready && (!order.strict || own.recipe == view.pool.target));
            }
            Next::GiveBack(id) => {
                let own = view.reserved.iter().find(|reserved| reserved.id == *id).unwrap();
                prop_assert!(order.strict && own.recipe != view.pool.target);
            }
            Next::Make { how, recipe } => {
                prop_assert!(view.reserved.is_empty() && order.miss != Miss::Require);
                prop_assert!(!order.strict || *recipe == view.pool.target);
                prop_assert_eq!(*how == ClaimSource::Fork, view.pool.template.as_ref() == Some(recipe));
            }
            Next::Join => prop_assert!(!inside, "it has a ticket"),
            Next::Wait { until } => {
                prop_assert!(*until > now, "it would wait for what is past");
                prop_assert!(inside, "it has no ticket");
            }
            Next::Refuse(_) => {}
        }
        let takes = matches!(step, Next::Take(_) | Next::GiveBack(_));
        let last_try = order.patience.max(FORK_BUDGET) + Duration::from_secs(10);
        prop_assert!(!takes || view.unfit == 0 || now < last_try, "it tries for ever: {:?}", step);
        let goes_on = matches!(step, Next::Make { .. } | Next::Join | Next::Wait { .. });
        prop_assert!(!goes_on || now < order.patience.max(FORK_BUDGET), "it never ends: {:?}", step);
    }

    /// Whatever happens: the promises that the model asserts, and everybody is answered.
    #[test]
    fn whatever_happens_every_claim_is_answered_in_order(events in prop::collection::vec(events(), 1..60)) {
        let mut model = ClaimModel::new();
        for event in events {
            happen(&mut model, event);
        }
        model.now += Duration::from_secs(100);
        model.look_again();
        let waits = model.claims.iter().find(|claim| claim.fate == Fate::Waits);
        prop_assert!(waits.is_none(), "{:?}\n{}", waits, model.told);
        let reserved = model.vms.iter().find(|vm| vm.reserved && vm.state != State::Gone);
        prop_assert!(reserved.is_none(), "{:?}\n{}", reserved, model.told);
    }
}
