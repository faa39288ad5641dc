//! Does what a hostile plugin would do, as the path says: `/{what}` with one of the names in [`misbehave`].
//!
//! Before each it writes `misbehave/trace`, which must never be committed by one that fails.

#[cfg(target_family = "wasm")]
mod raw;

use std::cell::Cell;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use chalet_sdk::http::{Request, Response};
use chalet_sdk::{Plugin, Result, context, flags, kv, limits, log, meters, reject, secrets};

/// How often this instance was called before; it must read 0 at every call.
static CALLS: AtomicU64 = AtomicU64::new(0);

/// The guest.
pub struct Misbehave;

impl Plugin for Misbehave {
    fn http(request: Request) -> Result<Response> {
        kv::put("misbehave", "trace", "written before")?;
        misbehave(request.param("what")?)
    }
}

/// Do it.
pub fn misbehave(what: &str) -> Result<Response> {
    match what {
        "well" => Ok(Response::text("well")),
        "global" => Ok(Response::text(CALLS.fetch_add(1, Ordering::Relaxed).to_string())),
        "loop" => loop {
            black_box(());
        },
        "loop-in-alloc" => loop {
            black_box(Vec::<u8>::with_capacity(black_box(4_096)));
        },
        "loop-in-host-calls" => loop {
            black_box(context::now_ms());
        },
        "bulk-memory" => {
            // Few instructions that each move much: fuel has to count the bytes.
            let mut bytes = vec![0_u8; 8 << 20];
            loop {
                bytes.fill(black_box(1));
                black_box(&bytes);
            }
        }
        "alloc" => {
            let mut kept = Vec::new();
            loop {
                kept.push(black_box(vec![1_u8; 1 << 20]));
            }
        }
        "alloc-at-once" => Ok(Response::text(black_box(vec![1_u8; 1 << 30]).len().to_string())),
        "recursion" => Ok(Response::text(recurse(1).to_string())),
        "panic" => panic!("as the path wants"),
        "unreachable" => trap(),
        "divide" => Ok(Response::text((1 / black_box(CALLS.load(Ordering::Relaxed))).to_string())),
        "log-flood" => {
            let line = "x".repeat(1_000);
            for _ in 0..10_000 {
                log::info(&line);
            }
            Ok(Response::text("flooded"))
        }
        "huge-body" => Ok(Response::new(200).with_body(vec![b'x'; 16 << 20])),
        "huge-header" => Ok(Response::text("x").with_header("x-huge", vec![b'x'; 1 << 20])),
        "many-headers" => {
            Ok((0..1_000).fold(Response::text("x"), |answer, n| answer.with_header(&format!("x-{n}"), "x")))
        }
        "bad-header" => Ok(Response::text("x").with_header("x-bad", "a\r\nset-cookie: b=c")),
        "bad-status" => Ok(Response::new(99)),
        "large-status" => Ok(Response::new(u16::MAX)),
        "host-calls" => {
            for n in 0..1_000_000_u32 {
                kv::get_bytes("misbehave", &n.to_string())?;
            }
            Ok(Response::text("called"))
        }
        "writes" => {
            for n in 0..100_000_u32 {
                kv::put("misbehave", &n.to_string(), &n)?;
            }
            Ok(Response::text("written"))
        }
        // As much as may be staged, and no more: how many of these rows.
        "all-rows" => stage(1),
        "all-bytes" => stage(250 << 10),
        "large-values" => {
            for n in 0..100_u32 {
                kv::put_bytes("misbehave", &n.to_string(), &vec![0; 250 << 10])?;
            }
            Ok(Response::text("written"))
        }
        "huge-value" => kv::put_bytes("misbehave", "huge", &vec![0; 16 << 20]).map(|()| Response::text("written")),
        "huge-reason" => Err(reject("x".repeat(16 << 20))),
        "strings" => strings(),
        #[cfg(target_family = "wasm")]
        other => raw::misbehave(other),
        #[cfg(not(target_family = "wasm"))]
        _ => Ok(Response::not_found()),
    }
}

thread_local! {
    static DEEPEST: Cell<u64> = const { Cell::new(0) };
}

#[expect(unconditional_recursion, reason = "this is what a hostile plugin does")]
fn recurse(depth: u64) -> u64 {
    DEEPEST.set(depth);
    let frame = black_box([depth; 64]);
    black_box(recurse(depth + 1)) + frame[0]
}

/// Stage rows with values of so many bytes until one is refused, and take that for an answer.
fn stage(bytes: usize) -> Result<Response> {
    kv::delete("misbehave", "trace")?;
    let value = vec![0; bytes];
    let staged = (0..2_000_u32).take_while(|n| kv::put_bytes("misbehave", &n.to_string(), &value).is_ok());
    Ok(Response::text(staged.count().to_string()))
}

fn trap() -> ! {
    #[cfg(target_family = "wasm")]
    core::arch::wasm32::unreachable();
    #[cfg(not(target_family = "wasm"))]
    panic!("unreachable");
}

/// Every text that a host might stumble over, to every import that takes one. The host refuses each by an error value;
/// the guest answers how many it refused.
fn strings() -> Result<Response> {
    let texts = [
        String::new(),
        "\0".to_owned(),
        "a\0b".to_owned(),
        "../../etc/passwd".to_owned(),
        "'; drop table kv; --".to_owned(),
        "%00%2e%2e%2f".to_owned(),
        "\u{202e}\u{feff}\u{10ffff}".to_owned(),
        "\r\nx: y".to_owned(),
        "{\"a\":".to_owned() + &"[".repeat(100_000),
        "x".repeat(1 << 20),
    ];
    let mut refused = 0;
    let mut count = |result: Result<()>| refused += u32::from(result.is_err());
    for text in &texts {
        count(kv::get_bytes(text, "k").map(drop));
        count(kv::put(text, "k", "v"));
        count(kv::list("misbehave", text, Some(text), 10).map(drop));
        count(kv::list("misbehave", "", Some(text), u32::MAX).map(drop));
        count(meters::record(text, 1));
        count(meters::record("misbehave", text.as_str()));
        count(limits::check(text, text, u32::MAX).map(drop));
        count(flags::evaluate(text, &flags::Context::new().with(text, text)).map(drop));
        count(secrets::get(text).map(drop));
        count(chalet_sdk::config::get(text).map(drop));
        count(chalet_sdk::http::Call::new(text, text).header(text, text).send().map(drop));
        log::info(text);
    }
    kv::delete("misbehave", "trace")?;
    Ok(Response::text(refused.to_string()))
}

chalet_sdk::export!(Misbehave: http);
