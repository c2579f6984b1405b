//! A product: its price, its stock, and who holds how much of it.
//!
//! A reservation is an order's, made by the order's own reaction, or a client's own. Both take units, and beyond that know
//! nothing of each other: what was taken for an order is given back, or sold, by that order's reactions alone, whatever
//! clients do under its name.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use crate::TimeMs;
use crate::growing_map::GrowingMap;
use crate::ids::{Fingerprint, OrderId, SaleId};

pub use holds::{Hold, Holds};

mod holds;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Register(Registration),
    Restock {
        quantity: u32,
    },
    Reprice {
        price_cents: u64,
    },
    Reserve {
        order: OrderId,
        quantity: u32,
        by: By,
    },
    Release {
        order: OrderId,
        by: Holder,
    },
    /// `amount_cents`: what the order pays for all units.
    Commit {
        order: OrderId,
        amount_cents: u64,
    },
    Allot {
        sale: SaleId,
        units: u32,
    },
    TakeBack {
        sale: SaleId,
        total: u32,
    },
    /// Puts back what clients held until now. `due_at`: not before.
    LapseHolds {
        due_at: Option<TimeMs>,
    },
    Discontinue,
}

/// Who reserves, and on which terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The order's own reaction. `amount_cents`: what the buyer agreed to pay for all units; `None` is not checked.
    Order { amount_cents: Option<u64> },
    /// A client, under a name that it chose, for so long, or until it lets go.
    Client { hold_secs: Option<u32> },
}

/// Whose reservation it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// The order's, made by its own reaction.
    Order,
    Client,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Registered(Registration),
    Restocked {
        quantity: u32,
    },
    Repriced {
        price_cents: u64,
    },
    /// `until`, of a client's alone: from then on the units are free. `alarm_at`: the product is to be asked at this time
    /// for what has ended, instead of at the time that was told before.
    Reserved {
        order: OrderId,
        quantity: u32,
        by: Holder,
        until: Option<TimeMs>,
        alarm_at: Option<TimeMs>,
    },
    Released {
        order: OrderId,
        quantity: u32,
        by: Holder,
    },
    /// What clients held until this time is available again. `alarm_at`: the product is to be asked again; `None`: not any
    /// more.
    HoldsLapsed {
        until: TimeMs,
        quantity: u64,
        alarm_at: Option<TimeMs>,
    },
    Committed {
        order: OrderId,
        quantity: u32,
        amount_cents: u64,
    },
    /// Units of a sale: nobody else may have them.
    Allotted {
        sale: SaleId,
        units: u32,
    },
    /// `total`: of all that the sale gave back.
    TakenBack {
        sale: SaleId,
        units: u32,
        total: u32,
    },
    Discontinued,
}

/// What a product is registered with; a second registration is compared with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    pub name: Box<str>,
    pub price_cents: u64,
    pub stock: u32,
    /// The most units that one order may reserve.
    pub limit_per_order: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum State {
    #[default]
    Unregistered,
    OnSale(Box<Product>),
    Discontinued(Box<Product>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Product {
    pub registration: Registration,
    pub price_cents: u64,
    /// Units that an order may still reserve.
    pub available: u64,
    /// Units that open orders hold, each until it is released or committed.
    pub reservations: GrowingMap<OrderId, u32>,
    pub holds: Holds,
    /// Units of orders that got theirs: they get it once, however late they ask again.
    pub committed: GrowingMap<Fingerprint, u32>,
    pub allotments: GrowingMap<SaleId, Allotment>,
}

/// Units that a sale got, and those of them that it gave back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allotment {
    pub units: u32,
    pub taken_back: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// Registered before, with other data.
    AlreadyRegistered,
    NotRegistered,
    OutOfStock,
    OverLimit,
    Discontinued,
    /// The units cost something else than the buyer agreed to. `price_cents`: of one, now.
    WrongPrice {
        price_cents: u64,
    },
    /// The order holds or got this product already, with another quantity.
    AlreadyReserved,
    NotReserved,
    /// The reservation is the order's, and no client's to let go.
    HeldByOrder,
    /// It is too early to put back what ends then.
    NotDue,
    /// The sale has units of this product already, in another number.
    AlreadyAllotted,
    /// Or not as many as it would give back.
    NotAllotted,
}

impl Event {
    /// Tells whether it adds an entry to one of the state's maps.
    pub(crate) fn adds_an_entry(&self) -> bool {
        match self {
            Self::Reserved { .. } | Self::Allotted { .. } => true,
            // It takes the place of what was reserved.
            Self::Committed { .. } => false,
            Self::Registered(_) | Self::Restocked { .. } | Self::Repriced { .. } | Self::Discontinued => false,
            Self::Released { .. } | Self::HoldsLapsed { .. } | Self::TakenBack { .. } => false,
        }
    }
}

impl State {
    /// Tells in a word how far it has come.
    pub fn status(&self) -> &'static str {
        match self {
            Self::Unregistered => "unregistered",
            Self::OnSale(_) => "on_sale",
            Self::Discontinued(_) => "discontinued",
        }
    }

    /// About how much memory it takes beyond its own size, in bytes.
    pub fn heap_bytes(&self) -> usize {
        /// An id as long as a UUID, and its place in a map that is between half full and full and was smaller before:
        /// as measured, since it depends on the allocator. The domain's test of memory tells by how much.
        const RESERVATION: usize = 100;
        /// A place alone.
        const COMMITTED: usize = 57;
        match self {
            Self::Unregistered => 0,
            Self::OnSale(product) | Self::Discontinued(product) => {
                let held = product.reservations.len() + product.allotments.len();
                let sold = product.committed.len() * COMMITTED;
                let holds = product.holds.heap_bytes();
                size_of::<Product>() + product.registration.name.len() + held * RESERVATION + sold + holds
            }
        }
    }
}

pub fn decide(state: &State, command: &Command, at: TimeMs) -> Result<Vec<Event>, Rejection> {
    match (command, state) {
        (Command::Register(registration), state) => register(state, registration),
        (_, State::Unregistered) => Err(Rejection::NotRegistered),
        (Command::Restock { quantity }, State::OnSale(_) | State::Discontinued(_)) => {
            Ok(vec![Event::Restocked { quantity: *quantity }])
        }
        (Command::Reprice { price_cents }, State::OnSale(product) | State::Discontinued(product)) => {
            Ok(reprice(product, *price_cents))
        }
        (Command::Reserve { order, quantity, by }, state) => reserve(state, order, *quantity, *by, at),
        (Command::Release { order, by }, State::OnSale(product) | State::Discontinued(product)) => {
            release(product, order, *by, at)
        }
        (Command::Commit { order, amount_cents }, State::OnSale(product) | State::Discontinued(product)) => {
            if product.committed.contains_key(&order.fingerprint()) {
                return Ok(vec![]);
            }
            let quantity = held(product, order)?;
            Ok(vec![Event::Committed { order: order.clone(), quantity, amount_cents: *amount_cents }])
        }
        (Command::Allot { sale, units }, state) => allot(state, sale, *units, at),
        (Command::TakeBack { sale, total }, State::OnSale(product) | State::Discontinued(product)) => {
            take_back(product, sale, *total)
        }
        (Command::LapseHolds { due_at: Some(due_at) }, _) if at < *due_at => Err(Rejection::NotDue),
        (Command::LapseHolds { .. }, State::OnSale(product) | State::Discontinued(product)) => {
            Ok(product.holds.lapse(at).into_iter().collect())
        }
        (Command::Discontinue, State::OnSale(_)) => Ok(vec![Event::Discontinued]),
        (Command::Discontinue, State::Discontinued(_)) => Ok(vec![]),
    }
}

pub fn evolve(state: State, event: &Event) -> State {
    match (event, state) {
        (Event::Registered(registration), State::Unregistered) => State::OnSale(Box::new(Product {
            registration: registration.clone(),
            price_cents: registration.price_cents,
            available: registration.stock.into(),
            reservations: GrowingMap::default(),
            holds: Holds::default(),
            committed: GrowingMap::default(),
            allotments: GrowingMap::default(),
        })),
        (Event::Restocked { quantity }, state) => update(state, |product| put_back(product, (*quantity).into())),
        (Event::Repriced { price_cents }, state) => update(state, |product| product.price_cents = *price_cents),
        (Event::Reserved { order, quantity, by, until, alarm_at }, state) => update(state, |product| {
            product.available = product.available.saturating_sub(u64::from(*quantity));
            match by {
                Holder::Order => drop(product.reservations.insert(order.clone(), *quantity)),
                Holder::Client => {
                    product.holds.insert(order.fingerprint(), Hold { quantity: *quantity, until: *until });
                    product.holds.set_alarm(alarm_at.or(product.holds.alarm_at()));
                }
            }
        }),
        (Event::Released { order, quantity, by }, state) => update(state, |product| {
            put_back(product, (*quantity).into());
            match by {
                Holder::Order => drop(product.reservations.remove(order)),
                Holder::Client => product.holds.remove(&order.fingerprint()),
            }
        }),
        (Event::HoldsLapsed { until, quantity, alarm_at }, state) => update(state, |product| {
            put_back(product, *quantity);
            product.holds.remove_until(*until);
            product.holds.set_alarm(*alarm_at);
        }),
        (Event::Committed { order, quantity, .. }, state) => update(state, |product| {
            product.reservations.remove(order);
            product.committed.insert(order.fingerprint(), *quantity);
        }),
        (Event::Allotted { sale, units }, state) => update(state, |product| {
            product.available = product.available.saturating_sub(u64::from(*units));
            product.allotments.insert(sale.clone(), Allotment { units: *units, taken_back: 0 });
        }),
        (Event::TakenBack { sale, units, total }, state) => update(state, |product| {
            put_back(product, (*units).into());
            if let Some(allotment) = product.allotments.get_mut(sale) {
                allotment.taken_back = *total;
            }
        }),
        (Event::Discontinued, State::OnSale(product)) => State::Discontinued(product),
        // No decision leads here.
        (Event::Registered(_) | Event::Discontinued, state) => state,
    }
}

fn register(state: &State, registration: &Registration) -> Result<Vec<Event>, Rejection> {
    match state {
        State::Unregistered => Ok(vec![Event::Registered(registration.clone())]),
        State::OnSale(product) | State::Discontinued(product) if product.registration == *registration => Ok(vec![]),
        State::OnSale(_) | State::Discontinued(_) => Err(Rejection::AlreadyRegistered),
    }
}

fn reprice(product: &Product, price_cents: u64) -> Vec<Event> {
    if product.price_cents == price_cents {
        return vec![];
    }
    vec![Event::Repriced { price_cents }]
}

/// Reserves, or repeats what was reserved: that is not judged by a price, a stock or a limit that changed since.
fn reserve(state: &State, order: &OrderId, quantity: u32, by: By, at: TimeMs) -> Result<Vec<Event>, Rejection> {
    let product = match state {
        State::Unregistered => return Err(Rejection::NotRegistered),
        State::OnSale(product) | State::Discontinued(product) => product,
    };
    let name = order.fingerprint();
    match reserved(product, order, &name, by, at) {
        Some(reserved) if reserved == quantity => return Ok(vec![]),
        Some(_) => return Err(Rejection::AlreadyReserved),
        None if matches!(state, State::Discontinued(_)) => return Err(Rejection::Discontinued),
        None => {}
    }
    check_price(by, quantity, product.price_cents)?;
    if product.registration.limit_per_order.is_some_and(|limit| quantity > limit) {
        return Err(Rejection::OverLimit);
    }
    let (holder, hold_secs) = match by {
        By::Order { .. } => (Holder::Order, None),
        By::Client { hold_secs } => (Holder::Client, hold_secs),
    };
    let missing = u64::from(quantity).saturating_sub(product.available);
    let lapsed = product.holds.make_room(missing, (holder == Holder::Client).then_some(&name), at)?;
    let until = hold_secs.map(|secs| TimeMs(at.0.saturating_add(u64::from(secs) * 1000)));
    let alarm_at = until.and_then(|until| product.holds.alarm_with(until, at, lapsed));
    let reserved = Event::Reserved { order: order.clone(), quantity, by: holder, until, alarm_at };
    Ok(lapsed.map(Event::from).into_iter().chain([reserved]).collect())
}

/// Gives what is, or was, had under this name by whoever asks. A client learns of an order's too; what clients hold is
/// nothing to an order.
fn reserved(product: &Product, order: &OrderId, name: &Fingerprint, by: By, at: TimeMs) -> Option<u32> {
    let own = match by {
        By::Order { .. } => None,
        By::Client { .. } => product.holds.get(name, at).map(|hold| hold.quantity),
    };
    own.or_else(|| product.reservations.get(order).copied()).or_else(|| product.committed.get(name).copied())
}

fn release(product: &Product, order: &OrderId, by: Holder, at: TimeMs) -> Result<Vec<Event>, Rejection> {
    let quantity = match by {
        Holder::Order => held(product, order)?,
        Holder::Client => match product.holds.get(&order.fingerprint(), at) {
            Some(hold) => hold.quantity,
            None if product.reservations.contains_key(order) => return Err(Rejection::HeldByOrder),
            None => return Err(Rejection::NotReserved),
        },
    };
    Ok(vec![Event::Released { order: order.clone(), quantity, by }])
}

/// Compares what the buyer agreed to with the price of this moment.
fn check_price(by: By, quantity: u32, price_cents: u64) -> Result<(), Rejection> {
    match by {
        By::Order { amount_cents: Some(agreed) } if price_cents.checked_mul(quantity.into()) != Some(agreed) => {
            Err(Rejection::WrongPrice { price_cents })
        }
        By::Order { .. } | By::Client { .. } => Ok(()),
    }
}

/// As with a reservation, what the sale has already comes first.
fn allot(state: &State, sale: &SaleId, units: u32, at: TimeMs) -> Result<Vec<Event>, Rejection> {
    let product = match state {
        State::Unregistered => return Err(Rejection::NotRegistered),
        State::OnSale(product) | State::Discontinued(product) => product,
    };
    match product.allotments.get(sale) {
        Some(allotment) if allotment.units == units => return Ok(vec![]),
        Some(_) => return Err(Rejection::AlreadyAllotted),
        None => {}
    }
    if matches!(state, State::Discontinued(_)) {
        return Err(Rejection::Discontinued);
    }
    let lapsed = product.holds.make_room(u64::from(units).saturating_sub(product.available), None, at)?;
    Ok(lapsed.map(Event::from).into_iter().chain([Event::Allotted { sale: sale.clone(), units }]).collect())
}

/// `total` only grows: an older one that comes late, or again, changes nothing.
fn take_back(product: &Product, sale: &SaleId, total: u32) -> Result<Vec<Event>, Rejection> {
    let allotment = product.allotments.get(sale).filter(|allotment| total <= allotment.units);
    let taken_back = allotment.ok_or(Rejection::NotAllotted)?.taken_back;
    match total.checked_sub(taken_back) {
        None | Some(0) => Ok(vec![]),
        Some(units) => Ok(vec![Event::TakenBack { sale: sale.clone(), units, total }]),
    }
}

fn held(product: &Product, order: &OrderId) -> Result<u32, Rejection> {
    product.reservations.get(order).copied().ok_or(Rejection::NotReserved)
}

/// Before the registration there is nothing to update, and no decision leads there.
fn update(mut state: State, change: impl FnOnce(&mut Product)) -> State {
    match &mut state {
        State::Unregistered => {}
        State::OnSale(product) | State::Discontinued(product) => change(product),
    }
    state
}

fn put_back(product: &mut Product, quantity: u64) {
    product.available = product.available.saturating_add(quantity);
}

#[cfg(test)]
mod tests;
