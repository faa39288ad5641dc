//! The load generator oha, as its own program starts it.

use clap::Parser as _;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    if let Err(error) = runtime.block_on(oha::run(oha::Opts::parse())) {
        eprintln!("{error:#}");
        std::process::exit(1);
    }
}
