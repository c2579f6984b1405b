//! A product with its stock and the number of available units.

use cqrs_es::event_sink::EventSink;
use cqrs_es::{Aggregate, DomainEvent};
use serde::{Deserialize, Serialize};

#[derive(Debug)]
pub(crate) enum Command {
    Register { name: String, price_cents: u64, stock: u32 },
    Reserve { order: String, quantity: u32 },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Event {
    Registered { name: String, price_cents: u64, stock: u32 },
    Reserved { order: String, quantity: u32 },
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Rejection {
    #[error("the product is already registered")]
    AlreadyRegistered,
    #[error("the product is not registered")]
    NotRegistered,
    #[error("the product is out of stock")]
    OutOfStock,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Product {
    registered: bool,
    available: u32,
}

impl DomainEvent for Event {
    fn event_type(&self) -> String {
        String::from(match self {
            Self::Registered { .. } => "product.registered",
            Self::Reserved { .. } => "product.reserved",
        })
    }

    fn event_version(&self) -> String {
        String::from("1")
    }
}

impl Aggregate for Product {
    const TYPE: &'static str = "product";
    type Command = Command;
    type Event = Event;
    type Error = Rejection;
    type Services = ();

    async fn handle(&mut self, command: Command, (): &(), sink: &EventSink<Self>) -> Result<(), Rejection> {
        let event = match command {
            Command::Register { .. } if self.registered => return Err(Rejection::AlreadyRegistered),
            Command::Register { name, price_cents, stock } => Event::Registered { name, price_cents, stock },
            Command::Reserve { .. } if !self.registered => return Err(Rejection::NotRegistered),
            Command::Reserve { quantity, .. } if quantity > self.available => return Err(Rejection::OutOfStock),
            Command::Reserve { order, quantity } => Event::Reserved { order, quantity },
        };
        sink.write(event, self).await;
        Ok(())
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Registered { stock, .. } => {
                self.registered = true;
                self.available = stock;
            }
            Event::Reserved { quantity, .. } => self.available = self.available.saturating_sub(quantity),
        }
    }
}
