//! The chart: how many requests a second each contestant answers, as a ratio to bare axum in the same run.
//!
//! One set of colours, each readable on a white and on a black page: who shows the picture rarely says which it is.

use std::fmt::Write as _;

use crate::board::Board;

/// What is drawn: a name, what the chart calls it, what it is compared with, and whether it is ours.
const BARS: &[(&str, &str, &str, bool)] = &[
    ("bare-get", "bare axum: no sandbox", "bare-get", false),
    ("nginx", "nginx: no sandbox", "bare-get", false),
    ("hello", "Chalet: fresh instance, whole pipeline", "bare-get", true),
    ("reads", "Chalet: JSON and two reads", "bare-post", true),
    ("pricing", "Chalet: JSON and a flag", "bare-post", true),
    ("plain", "axum + wasmtime, no pipeline: fresh instance", "bare-get", false),
    ("wasmtime-reused", "wasmtime serve: instances shared", "bare-get", false),
    ("wasmtime", "wasmtime serve: fresh instance", "bare-get", false),
    ("workerd", "workerd: isolate shared", "bare-get", false),
    ("extism-pooled", "Extism: plugins shared", "bare-get", false),
    ("extism", "Extism: fresh plugin", "bare-get", false),
];
/// Numbers of connections, with the class of their bars.
const CONNECTIONS: [(u32, &str); 2] = [(32, "few"), (128, "many")];
const WIDTH: f64 = 860.0;
const LABELS: f64 = 350.0;
const BAR: f64 = 11.0;
const ROW: f64 = 34.0;
const TOP: f64 = 64.0;

/// The chart as SVG, of what was measured.
pub fn svg(board: &Board) -> String {
    let measured: Vec<_> =
        BARS.iter().filter(|(name, ..)| board.row(name, 32).is_some_and(|row| !row.rounds.is_empty())).collect();
    let ratio = |name, beside, connections| board.ratio(name, beside, connections).map_or(0.0, |ratio| ratio.median);
    let greatest = measured
        .iter()
        .flat_map(|(name, _, beside, _)| CONNECTIONS.map(|(connections, _)| ratio(name, beside, connections)))
        .fold(1.0, f64::max);
    let scale = (WIDTH - LABELS - 70.0) / greatest;
    let height = TOP + measured.len() as f64 * ROW + 16.0;
    let mut text = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Requests a second as a ratio to bare axum">
<style>
text {{ font: 500 13px system-ui, sans-serif; fill: #737b86; }}
.title {{ font-weight: 600; font-size: 15px; }}
.own {{ font-weight: 650; }}
.few {{ fill: #8b949e; }}
.many {{ fill: #6e7781; }}
.own.few {{ fill: #3f8cf0; }}
.own.many {{ fill: #1f6feb; }}
.line {{ stroke: #8b949e; stroke-opacity: 0.5; stroke-dasharray: 3 3; }}
text.own {{ fill: #3f8cf0; }}
</style>
<text class="title" x="0" y="18">Requests a second, as a ratio to bare axum in the same run</text>
<rect class="few" x="0" y="32" width="11" height="11"/><text x="17" y="42">32 connections</text>
<rect class="many" x="130" y="32" width="11" height="11"/><text x="147" y="42">128 connections</text>
"##
    );
    let one = LABELS + scale;
    let _ = writeln!(
        text,
        r#"<line class="line" x1="{one:.1}" y1="{:.1}" x2="{one:.1}" y2="{:.1}"/>"#,
        TOP - 8.0,
        height - 8.0
    );
    for (at, (name, label, beside, own)) in measured.iter().enumerate() {
        let top = TOP + at as f64 * ROW;
        let own = if *own { "own " } else { "" };
        let label = label.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(
            text,
            r#"<text class="{own}" x="{:.1}" y="{:.1}" text-anchor="end">{label}</text>"#,
            LABELS - 10.0,
            top + BAR + 4.0
        );
        for (nth, (connections, class)) in CONNECTIONS.into_iter().enumerate() {
            let ratio = ratio(name, beside, connections);
            let (y, width) = (top + nth as f64 * (BAR + 1.0), ratio * scale);
            let _ = writeln!(
                text,
                r#"<rect class="{own}{class}" x="{LABELS}" y="{y:.1}" width="{width:.1}" height="{BAR}"/><text class="{own}" x="{:.1}" y="{:.1}" style="font-size:11px">{ratio:.2}</text>"#,
                LABELS + width + 6.0,
                y + BAR - 1.5,
            );
        }
    }
    text.push_str("</svg>\n");
    text
}
