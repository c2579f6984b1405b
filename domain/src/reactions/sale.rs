//! Steps and deadlines that the events of a sale cause.

use alloc::vec;

use super::{Deadline, Reaction, Step};
use crate::ids::{ProductId, SaleId};
use crate::order::Line;
use crate::sale::Event;

pub(super) fn react(id: &SaleId, event: &Event) -> Reaction {
    let take_back = |product: &ProductId, total: u32| {
        Reaction::from(vec![Step::TakeBack { product: product.clone(), sale: id.clone(), total }])
    };
    match event {
        Event::Scheduled(schedule) => Reaction {
            steps: vec![Step::Allot { product: schedule.product.clone(), sale: id.clone(), units: schedule.units }],
            deadlines: vec![
                (Deadline::OpenSale, Some(schedule.opens_at)),
                (Deadline::CloseSale, Some(schedule.closes_at)),
            ],
        },
        Event::Refused { .. } => {
            Reaction { steps: vec![], deadlines: vec![(Deadline::OpenSale, None), (Deadline::CloseSale, None)] }
        }
        Event::Closed { product, given_back } => Reaction {
            deadlines: vec![(Deadline::OpenSale, None), (Deadline::CloseSale, None)],
            ..take_back(product, *given_back)
        },
        Event::Returned { product, given_back: Some(total), .. } => take_back(product, *total),
        Event::Claimed { order, customer, quantity, product, amount_cents, is_ordered: false, .. } => {
            let line = Line { product: product.clone(), quantity: *quantity, amount_cents: *amount_cents };
            vec![Step::Place { order: order.clone(), customer: customer.clone(), line, sale: id.clone() }].into()
        }
        Event::Claimed { .. } | Event::Returned { .. } | Event::Stocked | Event::Opened | Event::Committed { .. } => {
            Reaction::default()
        }
    }
}
