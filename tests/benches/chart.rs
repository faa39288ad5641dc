//! The charts: how many requests a second each contestant answers, as a ratio to bare axum in the same run; and what a request
//! costs as something becomes many.
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

/// What is measured at sizes that grow.
pub struct Curve {
    /// What it is.
    pub name: &'static str,
    /// Sizes, and what each takes.
    pub points: Vec<(u64, f64)>,
}

/// The colours of curves, each with a dash of its own: not everybody tells colours apart.
const STROKES: [(&str, &str); 3] = [("#3f8cf0", "none"), ("#d9822b", "7 4"), ("#3a9d5d", "2 4")];
/// What is around the field that curves are drawn in, and its height.
const LEFT: f64 = 46.0;
const RIGHT: f64 = 44.0;
const BOTTOM: f64 = 44.0;
/// Between the axis and the first point, for its figure.
const INSET: f64 = 20.0;
const FIELD: f64 = 250.0;

/// Curves over sizes by powers of ten, as SVG.
pub fn curves(title: &str, curves: &[Curve]) -> String {
    let all = || curves.iter().flat_map(|curve| &curve.points);
    let most = all().map(|(_, value)| *value).fold(1.0, f64::max);
    let decades = all().map(|(size, _)| (*size as f64).log10()).fold(1.0, f64::max).ceil();
    let step =
        [5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0].into_iter().find(|step| most / step <= 6.0).unwrap_or(1000.0);
    let top = (most / step).ceil() * step;
    let head = 40.0 + curves.len() as f64 * 18.0;
    let x = |size: u64| LEFT + INSET + (size as f64).log10() / decades * (WIDTH - LEFT - INSET - RIGHT);
    let y = |value: f64| head + FIELD * (1.0 - value / top);
    let height = head + FIELD + BOTTOM;
    let mut text = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}">
<style>
text {{ font: 500 12px system-ui, sans-serif; fill: #737b86; }}
.title {{ font-weight: 600; font-size: 15px; }}
.grid {{ stroke: #8b949e; stroke-opacity: 0.3; }}
polyline {{ fill: none; stroke-width: 2; }}
</style>
<text class="title" x="0" y="18">{title}</text>
"##
    );
    for (nth, (curve, (colour, dash))) in curves.iter().zip(STROKES).enumerate() {
        let line = 40.0 + nth as f64 * 18.0;
        let _ = writeln!(
            text,
            r#"<line x1="0" y1="{:.1}" x2="28" y2="{:.1}" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/><text x="36" y="{line:.1}">{}</text>"#,
            line - 4.0,
            line - 4.0,
            curve.name
        );
    }
    for nth in 0..=(top / step) as u32 {
        let value = f64::from(nth) * step;
        let _ = writeln!(
            text,
            r#"<line class="grid" x1="{LEFT}" y1="{0:.1}" x2="{1:.1}" y2="{0:.1}"/><text x="{2:.1}" y="{3:.1}" text-anchor="end">{value:.0}</text>"#,
            y(value),
            WIDTH - RIGHT,
            LEFT - 8.0,
            y(value) + 4.0
        );
    }
    for decade in 0..=decades as u32 {
        let size = 10_u64.pow(decade);
        let _ = writeln!(
            text,
            r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
            x(size),
            head + FIELD + 20.0,
            thousands(size)
        );
    }
    for (curve, (colour, dash)) in curves.iter().zip(STROKES) {
        let line: Vec<String> =
            curve.points.iter().map(|&(size, value)| format!("{:.1},{:.1}", x(size), y(value))).collect();
        let _ = writeln!(
            text,
            r#"<polyline points="{}" style="stroke:{colour};stroke-dasharray:{dash}"/>"#,
            line.join(" ")
        );
        for &(size, value) in &curve.points {
            let _ = writeln!(
                text,
                r#"<circle cx="{0:.1}" cy="{1:.1}" r="3" fill="{colour}"/><text x="{0:.1}" y="{2:.1}" text-anchor="middle">{value:.0}</text>"#,
                x(size),
                y(value),
                y(value) - 8.0
            );
        }
    }
    text.push_str("</svg>\n");
    text
}

/// A number with a comma at each thousand.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let first = (digits.len() - 1) % 3 + 1;
    let rest = digits.as_bytes()[first..].chunks(3).map(|three| String::from_utf8_lossy(three).into_owned());
    std::iter::once(digits[..first].to_owned()).chain(rest).collect::<Vec<_>>().join(",")
}
