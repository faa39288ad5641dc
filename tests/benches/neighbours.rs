//! A quiet tenant beside a flooding one: what the first one's callers see of the second.
//!
//! The quiet tenant is asked 200 times a second, alone and while wrk sends the other one all it can on 64 connections. Beside
//! it stands the same with bare axum, which has no tenants: that much is wrk's part of the processors.

use std::path::Path;
use std::time::Duration;

use crate::bare;
use crate::board::median;
use crate::kit::server::Server;
use crate::load::{self, Request, Spread, Target};
use crate::{peers, say, steady};

/// Requests a second of the quiet tenant.
const RATE: u32 = 200;
/// Connections of the other one.
const FLOOD: u32 = 64;

/// What was found, milliseconds of the 99th of 100 answers, a round each.
#[derive(Default)]
pub struct Neighbours {
    /// What was asked, alone, and beside the flood.
    rows: Vec<(&'static str, Vec<f64>, Vec<f64>)>,
    missing: Option<String>,
}

impl Neighbours {
    /// How many times as long an answer takes beside the flood.
    pub fn times(&self, what: &str) -> Option<f64> {
        let (_, alone, beside) = self.rows.iter().find(|(own, ..)| *own == what)?;
        median(alone.iter().zip(beside).map(|(alone, beside)| beside / alone))
    }

    /// The table.
    pub fn markdown(&self) -> String {
        let mut text = String::from(
            "### A quiet tenant beside a flooding one\n\n\
             | both send | p99 ms alone | p99 ms beside the flood | times |\n|---|--:|--:|--:|\n",
        );
        for (what, alone, beside) in &self.rows {
            let figure = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.2}"));
            let (alone, beside) = (figure(median(alone.clone())), figure(median(beside.clone())));
            text += &format!("| {what} | {alone} | {beside} | {} |\n", figure(self.times(what)));
        }
        if let Some(missing) = &self.missing {
            text += &format!("\nNot measured: {missing}\n");
        }
        text
    }
}

/// Measure them on a server of its own, on SQLite.
pub async fn run(rounds: usize, duration: Duration) -> Neighbours {
    let mut found = Neighbours::default();
    let program = match peers::program("peer-oha") {
        Ok(program) => program,
        Err(why) => return Neighbours { missing: Some(format!("oha: {why}")), ..found },
    };
    let server = Server::start();
    server.unlimited().await;
    let mut targets = Vec::new();
    for name in ["quiet", "loud"] {
        let tenant = server.tenant(name).await;
        tenant.deploy("guest-work").await;
        targets.push(Target { path: format!("/t/{name}/guest-work/"), key: tenant.key });
    }
    let post = |body: &str| Request::post("", body);
    let mut loads = vec![
        ("reads", server.url.clone(), targets.clone(), post(r#"{"reads":["1","2"]}"#)),
        ("writes", server.url.clone(), targets.clone(), post(r#"{"write":"1"}"#)),
    ];
    let bare = bare::start();
    match &bare {
        Ok(bare) => {
            let root = Target { path: "/".into(), ..targets[0].clone() };
            loads.push((
                "the same bytes to bare axum",
                bare.url.clone(),
                vec![root.clone(), root],
                post(r#"{"reads":["1","2"]}"#),
            ));
        }
        Err(why) => found.missing = Some(format!("bare axum: {why}")),
    }
    for (what, url, targets, request) in loads {
        let (mut alone, mut beside) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            match both(&program, &url, &targets, &request, duration) {
                Ok((one, other)) => {
                    say(&format!("neighbours: p99 {one:.2} ms alone, {other:.2} ms beside the flood  {what}"));
                    alone.push(one);
                    beside.push(other);
                }
                Err(why) => found.missing = Some(format!("{what}: {why}")),
            }
        }
        found.rows.push((what, alone, beside));
    }
    found
}

fn both(
    program: &Path,
    url: &str,
    targets: &[Target],
    request: &Request,
    duration: Duration,
) -> Result<(f64, f64), String> {
    let quiet = || steady::at_rate(program, url, &targets[0], request, RATE, duration).map(|(_, p99)| p99);
    let alone = quiet()?;
    // The flood lasts longer than what is measured in it.
    let flood = || load::run(url, &targets[1..], Spread::Even, request, FLOOD, duration + Duration::from_secs(2));
    let (flood, beside) = std::thread::scope(|scope| {
        let flood = scope.spawn(flood);
        std::thread::sleep(Duration::from_secs(1));
        let beside = quiet();
        (flood.join().expect("wrk ends"), beside)
    });
    flood?;
    Ok((alone, beside?))
}
