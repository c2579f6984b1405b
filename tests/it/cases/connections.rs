//! Connections of clients that use rarely used features of HTTP.

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::fixture::{DEADLINE, Service, Shop, batch_line};

/// Sends bytes unchanged to a service that is to close the connection, and returns its whole answer.
async fn raw(service: &Service, parts: &[&str]) -> String {
    let mut stream = TcpStream::connect(service.http_addr()).await.unwrap();
    let mut answer = Vec::new();
    let exchange = async {
        for part in parts {
            stream.write_all(part.as_bytes()).await.unwrap();
        }
        stream.read_to_end(&mut answer).await.unwrap();
    };
    tokio::time::timeout(DEADLINE, exchange).await.unwrap_or_else(|_| panic!("no end of the answer to {parts:?}"));
    String::from_utf8(answer).unwrap()
}

fn restocks(lines: usize) -> String {
    let line = batch_line("products", "cd", "restock", json!({ "quantity": 1 }));
    format!("{line}\n").repeat(lines)
}

/// Starts a command-api without views and registers the product `cd`.
async fn commands() -> Service {
    let service = Shop::new(1).await.command_api().await;
    let data = json!({ "name": "A", "price_cents": 1, "stock": 1 });
    service.client().post("/v1/products/cd/register", data).await.accepted(&["product.registered.v1"]);
    service
}

#[tokio::test]
async fn a_command_without_data_needs_no_body_and_bodies_arrive_in_any_pieces() {
    let service = commands().await;
    let discontinue = "POST /v1/products/cd/discontinue HTTP/1.1\r\nhost: a\r\nconnection: close\r\n";
    let ways = [
        "content-type: application/json\r\ncontent-length: 0\r\n\r\n",
        "content-length: 0\r\n\r\n",
        "content-type: application/json\r\n\r\n",
        "\r\n",
        "content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ];
    for way in ways {
        let answer = raw(&service, &[discontinue, way]).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{way:?}: {answer}");
    }
    let head = "POST /v1/commands HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/x-ndjson\r\n\
        transfer-encoding: chunked\r\n\r\n";
    let body = restocks(3);
    let chunks =
        body.as_bytes().chunks(7).map(|chunk| format!("{:x}\r\n{}\r\n", chunk.len(), String::from_utf8_lossy(chunk)));
    let chunks: Vec<_> = chunks.chain(["0\r\n\r\n".to_owned()]).collect();
    let parts: Vec<_> = [head].into_iter().chain(chunks.iter().map(String::as_str)).collect();
    let answer = raw(&service, &parts).await;
    assert_eq!(answer.matches("\"status\":200").count(), 3, "{answer}");
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_whole_answers_without_chunks() {
    let service = commands().await;
    let body = restocks(300);
    let head = format!(
        "POST /v1/commands HTTP/1.0\r\ncontent-type: application/x-ndjson\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    for (parts, lines) in [(vec![&*head, &*body], 300), (vec!["GET /problems/rejected HTTP/1.0\r\n\r\n"], 0)] {
        let answer = raw(&service, &parts).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.0 200") && !head.to_lowercase().contains("transfer-encoding"), "{head}");
        assert_eq!(body.matches("\"status\":200").count(), lines, "{answer}");
    }
}

#[tokio::test]
async fn a_client_that_expects_100_continue_gets_it_and_is_refused_too_large_a_body_before_it_sends_it() {
    let service = commands().await;
    let body = restocks(100);
    let ask = |bytes: usize| {
        format!(
            "POST /v1/commands HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/x-ndjson\r\n\
             expect: 100-continue\r\ncontent-length: {bytes}\r\n\r\n"
        )
    };
    let mut stream = TcpStream::connect(service.http_addr()).await.unwrap();
    stream.write_all(ask(body.len()).as_bytes()).await.unwrap();
    let mut interim = [0; "HTTP/1.1 100 Continue\r\n\r\n".len()];
    tokio::time::timeout(DEADLINE, stream.read_exact(&mut interim))
        .await
        .expect("the client receives 100 Continue")
        .unwrap();
    assert!(interim.starts_with(b"HTTP/1.1 100"), "{}", String::from_utf8_lossy(&interim));
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(DEADLINE, stream.read_to_string(&mut answer)).await.expect("the batch is answered").unwrap();
    assert_eq!(answer.matches("\"status\":200").count(), 100, "{answer}");

    let answer = raw(&service, &[&ask(50_000_000)]).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}
