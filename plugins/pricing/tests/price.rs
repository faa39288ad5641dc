//! The plugin's quotes with the flag off, on and absent, in the in-memory host.

use chalet_sdk::http::Request;
use chalet_sdk::testing::Host;
use pricing::Pricing;
use serde_json::{Value, json};

fn host(discount: &str) -> Host {
    let host = Host::from_manifest(include_str!("../plugin.toml"));
    host.set_flags(
        &json!({ "flags": { "volume-discount": {
            "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": discount
        }}})
        .to_string(),
    );
    host
}

fn total(host: &Host, quantity: u64, list_cents: u64) -> Value {
    let order = json!({ "sku": "chair", "quantity": quantity, "list_cents": list_cents });
    let request = Request::post("/price", &order).expect("the order is JSON");
    let answer = host.http::<Pricing>(request).expect("the order is accepted");
    assert_eq!(answer.status(), 200);
    answer.read_json::<Value>().expect("a quote")["total_cents"].clone()
}

#[test]
fn ten_pieces_cost_ten_percent_less_while_the_flag_is_on() {
    let host = host("on");
    assert_eq!(total(&host, 10, 1_999), 17_991);
    assert_eq!(total(&host, 9, 1_999), 17_991);
    assert_eq!(total(&host, 11, 3), 30);
}

#[test]
fn without_the_flag_everybody_pays_the_list_price() {
    assert_eq!(total(&host("off"), 10, 1_999), 19_990);
    assert_eq!(total(&Host::from_manifest(include_str!("../plugin.toml")), 10, 1_999), 19_990);
}

#[test]
fn an_order_that_is_no_order_is_rejected() {
    for order in [json!({ "sku": "chair" }), json!({ "sku": "chair", "quantity": u64::MAX, "list_cents": 2 })] {
        let request = Request::post("/price", &order).unwrap();
        assert!(!host("on").http::<Pricing>(request).unwrap_err().retryable());
    }
}

#[test]
fn other_routes_are_not_found() {
    assert_eq!(host("on").http::<Pricing>(Request::get("/price")).unwrap().status(), 404);
}
