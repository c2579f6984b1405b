//! Deadlines that the events of a product set.

use alloc::vec;

use super::{Deadline, Reaction};
use crate::product::Event;

pub(super) fn react(event: &Event) -> Reaction {
    let lapse = |due| Reaction { steps: vec![], deadlines: vec![(Deadline::LapseHolds, due)] };
    match event {
        Event::Reserved { alarm_at: Some(due), .. } => lapse(Some(*due)),
        Event::HoldsLapsed { alarm_at, .. } => lapse(*alarm_at),
        Event::Registered(_)
        | Event::Restocked { .. }
        | Event::Repriced { .. }
        | Event::Reserved { alarm_at: None, .. }
        | Event::Released { .. }
        | Event::Committed { .. }
        | Event::Allotted { .. }
        | Event::TakenBack { .. }
        | Event::Discontinued => Reaction::default(),
    }
}
