//! Ends the orders after the rush: four of five are paid, the others expire or are cancelled, and the sale is closed.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::observations::Claim;
use super::shop::{LineAnswer, Shop};
use super::{Names, PATIENCE, PRICE_CENTS};

/// Number of lines in a batch.
const LINES: usize = 1_000;
const PAUSE: Duration = Duration::from_millis(100);

/// The final status of each order, and the number of paid ones.
pub(super) struct Ended {
    pub(super) statuses: HashMap<String, &'static str>,
    pub(super) paid: u64,
}

/// Pays four of five orders and waits until all orders have ended, then closes the sale. `window` is the payment
/// window; with `None`, if it is too long to wait for, unpaid orders are cancelled.
pub(super) fn end(shop: &Shop, names: &Names, claims: &[Claim], window: Option<Duration>) -> Result<Ended> {
    let begun = Instant::now();
    let (paid, left): (Vec<_>, Vec<_>) = claims.iter().partition(|claim| is_paid(&claim.order));
    let pay = |claim: &Claim| format!(r#""pay","data":{{"payment":"p-{}","amount_cents":{PRICE_CENTS}}}"#, claim.order);
    // Orders that had expired before they could be paid.
    let late = send(shop, &paid, pay)?;
    let (paid, late): (Vec<_>, Vec<_>) = paid.into_iter().partition(|claim| !late.contains(&claim.order));
    let seconds = begun.elapsed().as_secs_f64();
    println!("paid        {} orders, {seconds:.2} s after the rush; {} had expired already", paid.len(), late.len());
    let status = match window {
        Some(window) => {
            println!("            {} unpaid orders are left to expire after {} s", left.len(), window.as_secs());
            "expired"
        }
        None => {
            println!(
                "            {} unpaid orders are cancelled: the payment window is too long to wait for",
                left.len()
            );
            send(shop, &left, |_| r#""cancel","data":{}"#.to_owned()).map(drop)?;
            "cancelled"
        }
    };
    let ends = paid.iter().map(|claim| (claim.order.clone(), "paid"));
    let ends = ends.chain(late.iter().map(|claim| (claim.order.clone(), "expired")));
    let statuses = ends.chain(left.iter().map(|claim| (claim.order.clone(), status))).collect();
    await_orders(shop, &statuses, window.unwrap_or_default() + PATIENCE)?;
    shop.must(&format!("/v1/sales/{}/close", names.sale), "{}")?;
    Ok(Ended { statuses, paid: paid.len() as u64 })
}

/// Returns whether an order is to be paid: pseudo-random, but always the same for one order.
fn is_paid(order: &str) -> bool {
    let hash = order
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (hash >> 32) % 5 != 0
}

/// Sends a command for each order until all are accepted, since an order is confirmed shortly after its claim. Returns
/// the orders that have expired.
fn send(shop: &Shop, claims: &[&Claim], command: impl Fn(&Claim) -> String) -> Result<HashSet<String>> {
    let mut expired = HashSet::new();
    let mut waiting: HashMap<&str, &Claim> = claims.iter().map(|claim| (claim.order.as_str(), *claim)).collect();
    let begun = Instant::now();
    while !waiting.is_empty() {
        let claims: Vec<&Claim> = waiting.values().copied().collect();
        for some in claims.chunks(LINES) {
            for LineAnswer { id, status, rejection } in shop.batch(&lines(some, &command))? {
                match (status, rejection.as_deref()) {
                    (200, _) => drop(waiting.remove(id.as_str())),
                    (422, Some("expired")) => {
                        waiting.remove(id.as_str());
                        expired.insert(id);
                    }
                    (503, _) | (422, Some("not_confirmed" | "not_placed")) => {}
                    other => bail!("unexpected answer for order {id}: {other:?}"),
                }
            }
        }
        if begun.elapsed() > PATIENCE {
            bail!("{} orders were not confirmed within {} s", waiting.len(), PATIENCE.as_secs());
        }
        if !waiting.is_empty() {
            thread::sleep(PAUSE);
        }
    }
    Ok(expired)
}

fn lines(claims: &[&Claim], command: impl Fn(&Claim) -> String) -> String {
    let mut lines = String::new();
    for claim in claims {
        let command = command(claim);
        writeln!(lines, r#"{{"aggregate":"orders","id":"{}","command":{command}}}"#, claim.order)
            .expect("writing to a String cannot fail");
    }
    lines
}

/// Waits until every order has its expected final status.
fn await_orders(shop: &Shop, statuses: &HashMap<String, &'static str>, patience: Duration) -> Result<()> {
    let begun = Instant::now();
    let mut waiting: Vec<&String> = statuses.keys().collect();
    loop {
        let mut still = Vec::new();
        for (index, order) in waiting.iter().enumerate() {
            let row = shop.row(&format!("/v1/orders/{order}"))?.unwrap_or_default();
            if row["status"].as_str() != Some(statuses[*order]) {
                // Orders are checked in a fixed sequence, so one that has not ended defers all that follow.
                still.extend_from_slice(&waiting[index..]);
                break;
            }
        }
        if still.is_empty() {
            println!("ended       all {} orders, {:.2} s later", statuses.len(), begun.elapsed().as_secs_f64());
            return Ok(());
        }
        if begun.elapsed() > patience {
            bail!(
                "up to {} orders have not ended after {} s, among them {}",
                still.len(),
                patience.as_secs(),
                still[0]
            );
        }
        waiting = still;
        thread::sleep(PAUSE);
    }
}
