use axum::body::to_bytes;
use axum::extract::Path;
use axum::routing::{get, post};
use serde_json::Value;

use super::*;

fn allow(path: &str) -> Option<&'static str> {
    match path {
        "/rows" => Some("GET, HEAD, OPTIONS"),
        "/elsewhere" => Some("OPTIONS, POST"),
        _ => None,
    }
}

fn routes() -> Router {
    async fn panics() -> &'static str {
        panic!("on purpose")
    }
    Router::new()
        .route("/rows", get("rows"))
        .route("/own", post("own"))
        .route("/panics", get(panics))
        .route("/number/{number}", get(async |Path(number): Path<u32>| number.to_string()))
        .route("/id", get(async || request_id().map(|id| id.as_str().to_owned()).unwrap_or_default()))
}

async fn ask(border: &Border, method: &str, path: &str, headers: &[(&str, &str)]) -> (StatusCode, Response) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = border.answer(&TowerToHyperService::new(routes()), request.body(Body::empty()).unwrap()).await;
    (response.status(), response)
}

fn border() -> Border {
    Border { allow, ..Border::plain() }
}

async fn body(response: Response) -> String {
    String::from_utf8(to_bytes(response.into_body(), 65536).await.unwrap().to_vec()).unwrap()
}

#[tokio::test]
async fn every_failure_is_a_problem_that_names_its_request() {
    let cases = [
        ("GET", "/nowhere", 404, None),
        ("GET", "/elsewhere", 405, Some("OPTIONS, POST")),
        ("POST", "/rows", 405, Some("GET, HEAD, OPTIONS")),
        ("TRACE", "/rows", 405, Some("GET, HEAD, OPTIONS")),
        ("GET", "/own", 405, Some("POST")),
        ("OPTIONS", "/nowhere", 404, None),
        ("GET", "/number/x", 400, None),
        ("GET", "/number/%FF", 400, None),
        ("GET", "/number/%0a", 400, None),
        ("GET", "/panics", 500, None),
    ];
    for (method, path, expected, allowed) in cases {
        let (status, response) = ask(&border(), method, path, &[("x-request-id", "r-1")]).await;
        assert_eq!(status, expected, "{method} {path}");
        let header = |name| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(header("content-type").as_deref(), Some("application/problem+json"), "{method} {path}");
        assert_eq!(header("allow").as_deref(), allowed, "{method} {path}");
        assert_eq!(header("x-request-id").as_deref(), Some("r-1"));
        assert_eq!(header("x-content-type-options").as_deref(), Some("nosniff"));
        let problem: Value = serde_json::from_str(&body(response).await).unwrap();
        assert_eq!((&problem["status"], &problem["request_id"]), (&expected.into(), &"r-1".into()), "{method} {path}");
    }
}

#[tokio::test]
async fn a_request_has_an_id_from_end_to_end() {
    let (_, response) = ask(&border(), "GET", "/id", &[("x-request-id", "a b")]).await;
    let made = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    assert_ne!(made, "a b");
    assert_eq!(body(response).await, made);
    assert!(request_id().is_none());
}

#[tokio::test]
async fn a_page_of_an_allowed_site_learns_what_it_may_ask() {
    let (sent, exposed) = (HeaderValue::from_static("Colour, Size"), HeaderValue::from_static("Weight"));
    let shop = Border { origins: "https://shop.example".parse().unwrap(), sent, exposed, ..border() };
    let asked = [("origin", "https://shop.example"), ("access-control-request-method", "GET")];
    let (status, allowed) = ask(&shop, "OPTIONS", "/rows", &asked).await;
    let header =
        |response: &Response, name| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    assert_eq!(status, 204);
    assert_eq!(header(&allowed, "allow").as_deref(), Some("GET, HEAD, OPTIONS"));
    assert_eq!(header(&allowed, "access-control-allow-origin").as_deref(), Some("https://shop.example"));
    assert_eq!(header(&allowed, "access-control-allow-methods").as_deref(), Some("GET, HEAD, OPTIONS"));
    assert_eq!(header(&allowed, "access-control-allow-headers").as_deref(), Some("Colour, Size"));
    let (_, row) = ask(&shop, "GET", "/rows", &asked[..1]).await;
    assert_eq!(header(&row, "access-control-expose-headers").as_deref(), Some("Weight"));
    assert_eq!(header(&row, "vary").as_deref(), Some("Origin"));

    let stranger = [("origin", "https://evil.example"), ("access-control-request-method", "GET")];
    let (status, refused) = ask(&shop, "OPTIONS", "/rows", &stranger).await;
    assert_eq!(status, 204);
    assert!(header(&refused, "access-control-allow-origin").is_none());
    assert!(header(&refused, "access-control-allow-methods").is_none());
    let (status, _) = ask(&shop, "POST", "/own", &stranger[..1]).await;
    assert_eq!(status, 403);
    assert_eq!(ask(&shop, "POST", "/own", &asked[..1]).await.0, 200);
}
