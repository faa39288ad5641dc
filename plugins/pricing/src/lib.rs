//! Quotes a price in whole cents, with a volume discount behind a flag.
//!
//! `POST /price {"sku","quantity","list_cents"}` answers `{"total_cents"}`. While the flag `volume-discount` is on, ten
//! pieces or more cost 10 % less, rounded to the nearest cent, half a cent upwards.

use chalet_sdk::flags::{self, Context};
use chalet_sdk::http::{Request, Response};
use chalet_sdk::{Plugin, Result, reject};
use serde::{Deserialize, Serialize};

/// Pieces from which the discount is given.
const VOLUME: u64 = 10;

#[derive(Deserialize)]
struct Order {
    sku: String,
    quantity: u64,
    list_cents: u64,
}

#[derive(Serialize)]
struct Quote {
    total_cents: u64,
}

/// The plugin.
pub struct Pricing;

impl Plugin for Pricing {
    fn http(request: Request) -> Result<Response> {
        let order: Order = request.json()?;
        let list_total = order.quantity.checked_mul(order.list_cents);
        let list_total = list_total.ok_or_else(|| reject("quantity times list_cents is too large"))?;
        let context = Context::new().targeting_key(&order.sku).with("quantity", order.quantity);
        let discounted = order.quantity >= VOLUME && flags::boolean("volume-discount", false, &context);
        let total_cents = if discounted { nine_tenths(list_total) } else { list_total };
        Response::json(&Quote { total_cents })
    }
}

/// 90 % of the amount to the nearest cent: a tenth off, and half a cent goes upwards.
fn nine_tenths(cents: u64) -> u64 {
    let (tens, rest) = (cents / 10, cents % 10);
    tens * 9 + (rest * 9 + 5) / 10
}

chalet_sdk::export!(Pricing: http);

#[cfg(test)]
mod tests {
    use super::nine_tenths;

    #[test]
    fn nine_tenths_are_rounded_to_the_nearest_cent() {
        assert_eq!([10, 14, 15, 16, 0].map(nine_tenths), [9, 13, 14, 14, 0]);
        assert_eq!(nine_tenths(u64::MAX), 16_602_069_666_338_596_454);
    }
}
