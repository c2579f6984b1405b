//! Commands of staff: who may send them, for every command of the catalogue.

use schemas::aggregate::{TYPES, route_name};
use schemas::commands::{Who, contracts};
use serde_json::json;

use crate::fixture::{Client, SERVICE_TOKEN, Service, Shop, batch_line};

const TOKEN: &str = "the-secret-of-staff";
const PREVIOUS: &str = "the-secret-before-it";

/// A rule of a listener for commands of staff.
#[derive(Debug, Clone, Copy)]
enum Rule {
    Open,
    Token,
    Closed,
}

async fn service(shop: &Shop, rule: Rule) -> Service {
    let more = match rule {
        Rule::Open => vec![],
        Rule::Token => vec![("STAFF_TOKEN", format!("{TOKEN}\n{PREVIOUS}"))],
        Rule::Closed => vec![("HTTP_ADDR", "0.0.0.0:0".to_owned()), ("PLAINTEXT", "allowed".to_owned())],
    };
    let all = ("PARTITIONS", "0".to_owned());
    let service = Service::command_api(&shop.write_env(more.into_iter().chain([all]))).await;
    service.wait_ready().await;
    service
}

/// Returns the status of a command whose body no command takes, if the sender may send it.
fn expected(rule: Rule, who: Who, token: Option<&str>) -> u16 {
    let is_right = token.is_some_and(|token| [TOKEN, PREVIOUS].contains(&token));
    match (who, rule) {
        (Who::Internal, _) => 404,
        (Who::Client, _) | (Who::Staff, Rule::Open) => 400,
        (Who::Staff, Rule::Token) if is_right => 400,
        (Who::Staff, Rule::Token) => 401,
        (Who::Staff, Rule::Closed) => 403,
    }
}

/// Sends every command of the catalogue alone and as a line of a batch.
async fn walk(client: &Client, rule: Rule, token: Option<&str>) {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let headers: Vec<_> = bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
    let all =
        || TYPES.into_iter().flat_map(|aggregate| contracts(aggregate).iter().map(move |command| (aggregate, command)));
    let nobodys = json!({ "no_such_field": 1 });
    for (aggregate, command) in all() {
        let (route, name) = (route_name(aggregate), command.name);
        let what = format!("{route}/{name}, {rule:?}, {token:?}");
        let answer = client.post_with(&format!("/v1/{route}/a/{name}"), &headers, nobodys.clone()).await;
        assert_eq!(answer.status, expected(rule, command.who, token), "{what}: {answer:?}");
        assert_eq!(answer.header("www-authenticate"), (answer.status == 401).then_some("Bearer"), "{what}");
        if token.is_some() {
            assert_eq!(answer.header("cache-control"), Some("no-store"), "{what}");
        }
    }
    let lines = all().map(|(aggregate, command)| {
        let line = batch_line(route_name(aggregate), "a", command.name, nobodys.clone());
        format!("{line}\n")
    });
    let headers = [&[("content-type", "application/x-ndjson")], &*headers].concat();
    let answer = client.post_raw("/v1/commands", &headers, lines.collect::<String>()).await;
    assert_eq!(answer.header("cache-control"), token.map(|_| "no-store"));
    let lines: Vec<serde_json::Value> = answer.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), all().count(), "{answer:?}");
    for ((aggregate, command), line) in all().zip(lines) {
        let what = format!("{}/{}, {rule:?}, {token:?}", route_name(aggregate), command.name);
        assert_eq!(line["status"], expected(rule, command.who, token), "{what}: {line}");
    }
}

fn count_of_staffs() -> usize {
    TYPES.into_iter().flat_map(|aggregate| contracts(aggregate)).filter(|command| command.who == Who::Staff).count()
}

#[tokio::test]
async fn every_command_of_staff_wants_the_token_where_there_is_one_or_other_machines_send_commands() {
    let shop = Shop::new(1).await;
    for rule in [Rule::Open, Rule::Token, Rule::Closed] {
        let service = service(&shop, rule).await;
        let client = service.client();
        for token in [None, Some("the-secret-of-nobody"), Some(SERVICE_TOKEN), Some(TOKEN), Some(PREVIOUS)] {
            walk(&client, rule, token).await;
        }
        let metrics = service.admin_client().get("/metrics").await.text;
        let refused = "stampede_commands_refused_total{reason=\"staff\"}";
        let refused = metrics.lines().find_map(|line| line.strip_prefix(refused)?.trim().parse().ok()).unwrap_or(0);
        // Alone and as lines.
        let expected = match rule {
            Rule::Open => 0,
            Rule::Token => 2 * 3 * count_of_staffs(),
            Rule::Closed => 2 * 5 * count_of_staffs(),
        };
        assert_eq!(refused, expected, "{rule:?}");
        service.stop().await;
    }
}

#[tokio::test]
async fn a_command_of_staff_is_checked_where_it_arrives_and_takes_effect_at_its_owner() {
    let shop = Shop::new(2).await;
    let env = |share: &str, token: &str| {
        shop.write_env([("PARTITIONS", share.to_owned()), ("STAFF_TOKEN", token.to_owned())])
    };
    // The instances have different tokens, as they do in the middle of a rotation.
    let one = Service::command_api(&env("0", TOKEN)).await;
    let other = Service::command_api(&env("1", PREVIOUS)).await;
    one.wait_ready().await;
    other.wait_ready().await;
    let record = json!({ "name": "Kind of Blue", "price_cents": 1177, "stock": 10 });
    let bearer = format!("Bearer {TOKEN}");
    for id in 0..8 {
        let path = format!("/v1/products/p-{id}/register");
        one.client().post(&path, record.clone()).await.problem(401, "unauthenticated", "");
        let registered = one.client().post_with(&path, &[("authorization", &bearer)], record.clone()).await;
        registered.accepted(&["product.registered.v1"]);
        other.client().post_with(&path, &[("authorization", &bearer)], record.clone()).await.problem(
            401,
            "unauthenticated",
            "",
        );
    }
    // Holders of the service token, such as the reactor, are not asked for another one.
    let bearer = format!("Bearer {SERVICE_TOKEN}");
    let (internal, headers) = (one.internal_client(), [("authorization", bearer.as_str())]);
    let restocked = internal.post_with("/v1/products/p-0/restock", &headers, json!({ "quantity": 1 })).await;
    restocked.accepted(&["product.restocked.v1"]);
}
