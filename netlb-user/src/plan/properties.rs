//! Properties of planning: any state to any state, through any prefix, over any fault.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use netlb_common::backend::flags::{CLUSTER_LIST, LOCAL_LIST};
use netlb_common::frontend::FrontendKey;
use proptest::prelude::*;

use super::rig::{Rig, View, check, view};
use super::services::frontend_key;
use crate::compile::ServiceTables;
use crate::model::arbitrary::{devices, host, object};
use crate::model::{Change, HostState, Object, ObjectKey, PodDevice, ServiceName};
use crate::store::{Capacity, MapStore, Tables};

/// A backend that some list names.
const LISTED: u32 = CLUSTER_LIST | LOCAL_LIST;

type Objects = BTreeMap<ObjectKey, Object>;
type State = (Objects, BTreeMap<u32, PodDevice>, HostState);

fn state() -> impl Strategy<Value = State> {
    let objects = prop::collection::vec(object(), 0..14);
    let objects = objects.prop_map(|all| all.into_iter().map(|object| (object.key(), object)).collect());
    (objects, devices(), host())
}

fn changes(old: &Objects, new: &Objects) -> Vec<Change> {
    let gone = old.keys().filter(|key| !new.contains_key(key)).cloned().map(Change::Delete);
    new.values().cloned().map(Change::Apply).chain(gone).chain([Change::Synced]).collect()
}

/// The maps of an agent that never knew anything else.
fn fresh((objects, devices, host): &State) -> Rig {
    let mut rig = Rig::new(Capacity::default());
    rig.controller.set_host(host);
    rig.settle(changes(&Objects::new(), objects), Some(devices));
    rig
}

/// What is left when history is swept away: the same for every way to a state.
fn swept(mut rig: Rig) -> String {
    rig.now += Duration::from_secs(60);
    rig.sweep();
    rig.dump()
}

/// The port entries each Service wants.
type Owners = BTreeMap<ServiceName, BTreeSet<FrontendKey>>;

fn owners(rig: &Rig) -> Owners {
    let ports =
        |tables: &ServiceTables| tables.ports.values().flat_map(|p| p.frontends.keys().map(frontend_key)).collect();
    rig.controller.compiled().services.iter().map(|(name, tables)| (name.clone(), ports(tables))).collect()
}

/// The port entries each Service has.
fn held(rig: &Rig) -> Owners {
    let names = rig.controller.names();
    let mut held = Owners::new();
    for (key, value) in rig.controller.shadow().frontends.iter().filter(|(key, _)| !key.is_address()) {
        let (namespace, name) = names.services[&value.service].service.split_once('/').expect("namespace/name");
        held.entry(ServiceName::new(namespace, name)).or_default().insert(*key);
    }
    held
}

fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) }
}

proptest! {
    #![proptest_config(config())]

    /// After any prefix of a plan each frontend is old or new, and an agent that starts there, knowing the maps alone, arrives.
    #[test]
    fn any_prefix_is_old_or_new_and_can_be_taken_up(a in state(), b in state()) {
        let mut rig = fresh(&a);
        let old = view(&rig.tables());
        let want = swept(fresh(&b));
        let new = view(&fresh(&b).tables());
        rig.now = Duration::from_secs(60);
        rig.store.now = rig.now;
        rig.controller.set_host(&b.2);
        let plan = rig.controller.update(changes(&a.0, &b.0), Some(&b.1), rig.now);
        for done in 0..=plan.steps.len() {
            if let Some(done) = done.checked_sub(1) {
                rig.store.apply(&plan.steps[done].op).unwrap();
            }
            let tables = rig.tables();
            check(&tables, &old, &new);
            let mut next = Rig::restarted(tables, Capacity::default());
            next.controller.set_host(&b.2);
            next.settle(changes(&Objects::new(), &b.0), Some(&b.1));
            prop_assert_eq!(view(&next.tables()), new.clone());
            prop_assert_eq!(swept(next), want.clone());
        }
    }

    /// An agent that restarts into an unchanged world writes nothing.
    #[test]
    fn a_restart_changes_nothing(a in state(), b in state()) {
        let mut rig = fresh(&a);
        rig.controller.set_host(&b.2);
        rig.settle(changes(&a.0, &b.0), Some(&b.1));
        let tables = rig.tables();
        let mut next = Rig::restarted(tables.clone(), Capacity::default());
        next.controller.set_host(&b.2);
        next.settle(changes(&Objects::new(), &b.0), Some(&b.1));
        prop_assert_eq!(next.tables(), tables);
    }

    /// Before its source has been read whole, a restarted agent takes nothing away.
    #[test]
    fn nothing_is_removed_before_the_source_is_whole(a in state(), picked in prop::collection::vec(any::<bool>(), 14)) {
        let rig = fresh(&a);
        let old = view(&rig.tables());
        let mut next = Rig::restarted(rig.tables(), Capacity::default());
        let some = a.0.values().zip(picked).filter(|(_, picked)| *picked);
        let some = some.map(|(object, _)| Change::Apply(object.clone()));
        next.settle(some.chain([Change::Incomplete, Change::Synced]).collect(), None);
        let now = view(&next.tables());
        for (key, old) in &old {
            let (inside, outside) = now.get(key).map(|seen| (seen.inside.clone(), seen.outside.clone())).unwrap_or_default();
            for (left, had) in [(inside, &old.inside), (outside, &old.outside)] {
                prop_assert!(had.iter().all(|b| left.contains(b)), "{:?}: {:?} of {:?} are left", key, left, had);
            }
        }
        // One that no list names has no flows, and may go.
        for (id, old) in rig.tables().backends.iter().filter(|(_, old)| old.flags & LISTED != 0) {
            prop_assert_eq!(next.tables().backends[id].endpoint, old.endpoint, "{:?}", next.tables().backends[id]);
        }
        let endpoints = |tables: Tables| (tables.endpoints, tables.endpoint_by_addr, tables.endpoint_by_ifindex);
        prop_assert_eq!(endpoints(next.tables()), endpoints(rig.tables()));
        for (key, old) in rig.tables().frontends.iter().filter(|(key, _)| key.is_address()) {
            prop_assert_eq!(next.tables().frontends[key].flags & old.flags, old.flags);
        }
        prop_assert_eq!((next.tables().uplinks, next.tables().clients), (rig.tables().uplinks, rig.tables().clients));
        // The rest comes, and all is as it was.
        next.controller.set_host(&a.2);
        next.settle(changes(&Objects::new(), &a.0), Some(&a.1));
        prop_assert_eq!(view(&next.tables()), old);
        prop_assert_eq!(swept(next), swept(rig));
    }

    /// Through a walk of states, with a fault in each plan, sweeps in between and time passing, every frontend is always old or new, and the
    /// maps end as if nothing had gone wrong.
    #[test]
    fn faults_delay_and_change_nothing(
        states in prop::collection::vec((state(), 0usize..60, 0u64..40, any::<bool>()), 1..6),
    ) {
        let mut rig = Rig::new(Capacity::default());
        let mut before: (Objects, View) = Default::default();
        for (state, fail_in, pause, sweep) in &states {
            let (objects, devices, host) = state;
            let new = view(&fresh(state).tables());
            rig.controller.set_host(host);
            rig.now += Duration::from_secs(*pause);
            let (mut todo, mut known) = (Some(changes(&before.0, objects)), Some(devices));
            rig.store.fail_in = Some(*fail_in);
            for _ in 0..8 {
                rig.store.now = rig.now;
                let plan = rig.controller.update(todo.take().unwrap_or_default(), known.take(), rig.now);
                if plan.is_empty() {
                    break;
                }
                rig.controller.apply(&plan, &mut rig.store);
                check(&rig.tables(), &before.1, &new);
            }
            rig.store.fail_in = None;
            prop_assert_eq!(view(&rig.tables()), new.clone());
            if *sweep {
                rig.sweep();
            }
            before = (objects.clone(), new);
        }
        let (last, _, _, _) = states.into_iter().next_back().expect("at least one state");
        prop_assert_eq!(swept(rig), swept(fresh(&last)));
    }

    /// With too little room every Service is there whole, or as it was; and all enter once there is room.
    #[test]
    fn what_does_not_fit_stays_out_whole(
        states in prop::collection::vec(state(), 1..5),
        frontends in 3u32..16,
        slots in 1u32..10,
        backends in 3u32..20,
    ) {
        let capacity = Capacity { frontends, slots: slots * 4, backends, endpoints: 4, endpoint_addrs: 6, ..Capacity::default() };
        let mut rig = Rig::new(capacity);
        let mut before: (Objects, View) = Default::default();
        for state in &states {
            let (objects, devices, host) = state;
            let held = held(&rig);
            let wanted = fresh(state);
            rig.controller.set_host(host);
            let (new, owners) = (view(&wanted.tables()), owners(&wanted));
            rig.now += Duration::from_secs(60);
            rig.settle(changes(&before.0, objects), Some(devices));
            rig.sweep();
            rig.now += Duration::from_secs(60);
            rig.settle(Vec::new(), None);
            let now = view(&rig.tables());
            for (service, keys) in &owners {
                // What another Service had before is not this one's to keep.
                let had: BTreeSet<_> = held.get(service).into_iter().flatten().copied().collect();
                let taken = |key| held.iter().chain(&owners).any(|(other, keys)| other != service && keys.contains(key));
                let entered = keys.iter().all(|key| now.get(key) == new.get(key))
                    && had.difference(keys).all(|key| taken(key) || !now.contains_key(key));
                let stayed = keys.union(&had).filter(|key| !taken(key)).all(|key| {
                    now.get(key) == before.1.get(key).filter(|_| had.contains(key))
                });
                prop_assert!(entered || stayed, "{:?}: {:?}\nold {:?}\nnew {:?}", service, now, before.1, new);
            }
            let short = rig.controller.problems().iter().any(|p| p.message.contains("stays as it was"));
            prop_assert!(short || now == new);
            before = (objects.clone(), now);
        }
        // The same maps, and an agent with room.
        let last = states.into_iter().next_back().expect("at least one state");
        let mut next = Rig::restarted(rig.tables(), Capacity::default());
        next.controller.set_host(&last.2);
        next.settle(changes(&Objects::new(), &last.0), Some(&last.1));
        prop_assert_eq!(swept(next), swept(fresh(&last)));
    }
}
