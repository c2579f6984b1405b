//! Reactors that lost all that they knew, and go on with what is open.

use super::*;

/// Name of a rejection. Only that of an early deadline matters to a saga.
fn name(rejection: &crate::Rejection) -> &'static str {
    match rejection {
        crate::Rejection::Product(product::Rejection::NotDue)
        | crate::Rejection::Order(order::Rejection::NotDue)
        | crate::Rejection::Sale(sale::Rejection::NotDue) => NOT_DUE,
        _ => "rejected",
    }
}

impl Shop {
    /// Returns the open steps of all events, each with the index of its event, as `projector recover` finds them.
    fn open_steps(&self) -> Vec<(usize, Step)> {
        let state = |aggregate, id: &str| self.states.get(&(aggregate, id.to_string()));
        let steps = |(index, Entry { id, event, at, is_caused }): (usize, &Entry)| {
            let reaction = react(id, event, *at, *is_caused, WINDOW_MS);
            reaction.steps.into_iter().map(move |step| (index, step)).collect::<Vec<_>>()
        };
        let all = self.log.iter().enumerate().flat_map(steps);
        let open = all.filter(|(_, step)| is_open(step.clone(), self.now, state, name));
        let (gives_back, others): (Vec<_>, Vec<_>) = open.partition(|(_, step)| step.gives_back());
        // What has ended gives back first, once.
        let mut after = self.states.clone();
        let mut carry_out = |step: &Step| {
            let (aggregate, id, command) = step.command();
            let state = after.get_mut(&(aggregate, id.to_string())).unwrap();
            let events = decide(state, &command, self.now).unwrap_or_default();
            *state = events.iter().fold(state.clone(), evolve);
            !events.is_empty()
        };
        let gives_back: Vec<_> = gives_back.into_iter().filter(|(_, step)| carry_out(step)).collect();
        let state = |aggregate, id: &str| after.get(&(aggregate, id.to_string()));
        let others = others.into_iter().filter(|(_, step)| is_open(step.clone(), self.now, state, name));
        gives_back.into_iter().chain(others).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_reactor_that_lost_its_place_completes_everything_by_the_open_steps_alone(
        moves in vec_of(any_move(), 0..80),
        more in vec_of(any_client(), 0..20),
    ) {
        let mut shop = Shop::open();
        shop.catch_up();
        moves.iter().for_each(|next| shop.make(next));
        // The steps in flight are lost.
        shop.waiting = shop.open_steps();
        more.iter().for_each(|next| shop.make(next));
        shop.settle();
        shop.check();
        shop.pass(TimeMs(WINDOW_MS));
        shop.check();
        shop.pass(CLOSES);
        shop.check();
    }

    #[test]
    fn nothing_is_open_once_everything_had_its_effect(moves in vec_of(any_move(), 0..80)) {
        let mut shop = Shop::open();
        shop.catch_up();
        moves.iter().for_each(|next| shop.make(next));
        shop.settle();
        prop_assert_eq!(shop.open_steps(), Vec::new());
    }
}
