//! Extism behind axum: `peer-extism fresh|pooled PLUGIN` prints its address and serves until stdin ends.
//!
//! The plugin is compiled once. `fresh` makes a plugin of the compiled code for each request; `pooled` takes one from
//! Extism's own pool, of twice as many as there are cores, and gives it back.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use extism::{CompiledPlugin, Manifest, Plugin, PluginBuilder, PoolBuilder, Wasm};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, how, path] = &arguments[..] else { panic!("peer-extism fresh|pooled PLUGIN") };
    let manifest = Manifest::new([Wasm::data(std::fs::read(path).expect("the plugin can be read"))]);
    let compiled = CompiledPlugin::new(PluginBuilder::new(manifest).with_wasi(false)).expect("the plugin compiles");
    let router = Router::new();
    let router = if how == "pooled" {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let make = move || Plugin::new_from_compiled(&compiled);
        let pool = PoolBuilder::new().with_max_instances(cores * 2).build(make);
        router.route(
            "/",
            get(|| async move {
                let mut plugin = pool.get(Duration::from_secs(10)).expect("the pool works").expect("a plugin is free");
                plugin.call::<_, String>("hello", ()).expect("the plugin answers")
            }),
        )
    } else {
        router.route(
            "/",
            get(|| async move {
                let mut plugin = Plugin::new_from_compiled(&compiled).expect("a plugin is made");
                plugin.call::<_, String>("hello", ()).expect("the plugin answers")
            }),
        )
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.spawn(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a loopback port is free");
        println!("http://{}", listener.local_addr().expect("a bound socket has an address"));
        std::io::stdout().flush().expect("stdout is piped");
        axum::serve(listener, router).await.expect("axum serves");
    });
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}
