//! A reactor without checkpoints waits for an operator before it reacts to an old log.

use std::time::Duration;

use projector::begin::{From, begin};

use super::*;
use crate::fixture::append_old;

async fn waits_to_be_told(from: From) {
    let shop = Shop::with_views(1).await;
    let claim = Record::Claim(Claim { nonce: 7, url: "http://127.0.0.1:1".into(), partitions: None });
    append_old(&shop, 0, &claim, Duration::from_secs(24 * 60 * 60)).await;
    let command_api = shop.command_api().await;
    let services = [shop.projector().await, shop.query_api().await];
    let (commands, queries) = (command_api.client(), services[1].client());
    let whole = Whole { shop, commands, queries, command_api: None, reactor: None, _services: services };
    whole.register("cd", 9).await;
    let place = async |order: &str| whole.place(order, &[("cd", 1)]).await.accepted(&["order.placed.v1"]);
    place("before").await;
    place("confirmed").await;
    command_api.caused("orders", "confirmed", "confirm-line", json!({ "product": "cd" })).await;

    // The reactor has no checkpoints for this log.
    let reactor = Service::projector(&whole.shop.reactor_env(&command_api.internal_addr(), 600));
    let admin = reactor.admin_client();
    eventually("the reactor names the command to run", async || {
        let says = admin.get("/readyz").await.text.contains("`projector reactor from-end`");
        let counts = admin.get("/metrics").await.text.contains("\nstampede_reactor_waits_to_be_told 1");
        (says && counts).then_some(())
    })
    .await;
    place("meanwhile").await;
    let read = "SELECT max(next_offset) FROM checkpoints WHERE view = 'reactor'";
    assert_eq!(whole.shop.sql(read).await, Some(0));

    let config = projector::Config::from_env(&whole.shop.env([])).unwrap();
    assert_eq!(begin(&config, from).await.unwrap(), usize::from(from == From::End), "deadlines");
    reactor.wait_ready().await;
    place("after").await;
    whole.comes_to("/v1/orders/after", json!({ "status": "confirmed" })).await;
    let before = if from == From::End { "placed" } else { "confirmed" };
    for order in ["before", "meanwhile"] {
        whole.comes_to(&format!("/v1/orders/{order}"), json!({ "status": before })).await;
    }
    let deadline = "SELECT count(*) FROM deadlines WHERE aggregate = 'order/confirmed'";
    eventually("the order's deadline is set", async || (whole.shop.sql(deadline).await == Some(1)).then_some(())).await;
    assert!(begin(&config, from).await.is_err(), "the reactor has begun already");
}

#[tokio::test]
async fn a_reactor_without_checkpoints_under_an_old_log_waits_and_can_skip_the_past_except_its_deadlines() {
    waits_to_be_told(From::End).await;
}

#[tokio::test]
async fn a_reactor_without_checkpoints_under_an_old_log_waits_and_can_react_to_all_of_it() {
    waits_to_be_told(From::Beginning).await;
}
