//! A host without a pipeline, tuned: `peer-plain COMPONENT` prints its address and serves until stdin ends.
//!
//! It runs Chalet's own plugins, each request in a fresh instance, from a pool that keeps memory mapped and clears it by
//! hand, and can interrupt a guest that runs too long. It has no credentials, tenants, routes, limits, budgets, records
//! or data: what Chalet costs beside it is what those cost.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Response, StatusCode};
use wasmtime::component::{Component, Linker};
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Store};

wasmtime::component::bindgen!({
    path: "../../../../guest-sdk/wit",
    world: "http-plugin",
    exports: { default: async },
});

use exports::chalet::platform::http_trigger::Request;

/// Guests at a time.
const SLOTS: u32 = 256;
/// Bytes of memory, tables and stacks that stay mapped: more than a usual guest touches.
const KEPT_BYTES: usize = 256 << 10;
/// How often a guest that computes lets others run.
const TICK: Duration = Duration::from_millis(10);

struct Host {
    engine: Engine,
    program: HttpPluginPre<()>,
}

fn main() {
    let path = std::env::args().nth(1).expect("peer-plain COMPONENT");
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(SLOTS)
        .total_core_instances(SLOTS * 4)
        .total_memories(SLOTS)
        .total_tables(SLOTS * 2)
        .total_stacks(SLOTS)
        .max_unused_warm_slots(SLOTS)
        .linear_memory_keep_resident(KEPT_BYTES)
        .table_keep_resident(KEPT_BYTES)
        .async_stack_keep_resident(KEPT_BYTES);
    let mut config = Config::new();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    config.memory_init_cow(false);
    config.epoch_interruption(true);
    let engine = Engine::new(&config).expect("an engine");
    let component = Component::from_file(&engine, path).expect("the component compiles");
    let mut linker = Linker::new(&engine);
    linker.define_unknown_imports_as_traps(&component).expect("every import has a name");
    let program = linker.instantiate_pre(&component).and_then(HttpPluginPre::new).expect("a plugin for http");
    let ticking = engine.clone();
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(TICK);
            ticking.increment_epoch();
        }
    });
    let host = Arc::new(Host { engine, program });
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.spawn(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a loopback port is free");
        println!("http://{}", listener.local_addr().expect("a bound socket has an address"));
        std::io::stdout().flush().expect("stdout is piped");
        let answer = move |parts: Parts, body: Bytes| {
            let host = host.clone();
            async move { host.answer(parts, body).await.expect("the guest answers") }
        };
        axum::serve(listener, Router::new().fallback(answer)).await.expect("axum serves");
    });
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

impl Host {
    async fn answer(&self, parts: Parts, body: Bytes) -> wasmtime::Result<Response<Body>> {
        let mut store = Store::new(&self.engine, ());
        store.epoch_deadline_async_yield_and_update(1);
        let plugin = self.program.instantiate_async(&mut store).await?;
        let header = |(name, value): (&HeaderName, &HeaderValue)| (name.as_str().to_owned(), value.as_bytes().to_vec());
        let request = Request {
            method: parts.method.as_str().to_owned(),
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().map(str::to_owned),
            headers: parts.headers.iter().map(header).collect(),
            body: body.into(),
            route: format!("{} {}", parts.method, parts.uri.path()),
            params: Vec::new(),
        };
        let answered = plugin.chalet_platform_http_trigger().call_handle(&mut store, &request).await?;
        let answered = answered.map_err(|failure| wasmtime::format_err!("{failure:?}"))?;
        let mut response = Response::new(Body::from(answered.body));
        *response.status_mut() = StatusCode::from_u16(answered.status)?;
        for (name, value) in answered.headers {
            response.headers_mut().append(HeaderName::try_from(name)?, HeaderValue::try_from(value)?);
        }
        Ok(response)
    }
}
