//! What commands print: lines on stdout, tables, and marks that are coloured where somebody looks.

use std::io::{IsTerminal as _, Write as _};

use serde_json::Value;

use super::{Failure, Result};
use crate::kernel::text::escaped;

/// A line of the result. A reader that has gone away, such as `head`, ends the command without a word.
pub(super) fn say(line: impl AsRef<str>) {
    let mut stdout = std::io::stdout().lock();
    if writeln!(stdout, "{}", line.as_ref()).and_then(|()| stdout.flush()).is_err() {
        std::process::exit(0);
    }
}

/// A line about what goes on, which is not the result.
pub(super) fn note(line: impl AsRef<str>) {
    eprintln!("{}", line.as_ref());
}

/// What the API answered, as it is.
pub(super) fn say_json(value: &Value) {
    say(serde_json::to_string_pretty(value).unwrap_or_default());
}

/// Colours, by their numbers (ECMA-48, 8.3.117).
#[derive(Clone, Copy)]
pub(super) enum Ink {
    Bold = 1,
    Dim = 2,
    Red = 31,
    Green = 32,
    Yellow = 33,
}

/// The text in this colour on a terminal, unless `NO_COLOR` is set; plain elsewhere.
pub(super) fn ink(ink: Ink, text: &str) -> String {
    if coloured(std::io::stdout().is_terminal()) { paint(ink, text) } else { text.to_owned() }
}

/// What an error's line starts with.
pub(super) fn error_mark() -> String {
    if coloured(std::io::stderr().is_terminal()) { paint(Ink::Red, "error:") } else { "error:".to_owned() }
}

fn coloured(terminal: bool) -> bool {
    terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn paint(ink: Ink, text: &str) -> String {
    format!("\x1b[{}m{text}\x1b[0m", ink as u8)
}

/// Print rows under headers, each column as wide as its widest cell; or say in one line that there are none.
pub(super) fn table<const N: usize>(headers: [&str; N], rows: &[[String; N]], none: &str) {
    if rows.is_empty() {
        note(none);
        return;
    }
    let line = |cells: [&str; N], widths: [usize; N]| {
        let mut line = String::new();
        for (cell, width) in cells.into_iter().zip(widths) {
            line.push_str(cell);
            line.push_str(&" ".repeat(width - cell.chars().count() + 2));
        }
        line.trim_end().to_owned()
    };
    let mut widths = headers.map(|header| header.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    say(ink(Ink::Bold, &line(headers.map(|header| header), widths)));
    for row in rows {
        say(line(row.each_ref().map(String::as_str), widths));
    }
}

/// Print names and values, the values in one column.
pub(super) fn facts(facts: &[(&str, String)]) {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
        say(format!("{:width$}  {value}", format!("{name}")));
    }
}

/// A field of the API's JSON as people read it: text without quotes, nothing for null. What is in it may be a stranger's.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => escaped(text),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// A field of the API's JSON by its name.
pub(super) fn field(value: &Value, name: &str) -> String {
    text(&value[name])
}

/// A number of bytes as people read it: 980 B, 12.4 KB, 3.1 MB (1 KB is 1,000 bytes).
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KB", "MB", "GB", "TB"];
    if count < 1_000 {
        return format!("{count} B");
    }
    let (mut value, mut unit) = (count as f64 / 1e3, 0);
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1e3;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A time of the API without date's and second's fractions: `2026-01-31 08:15:02`.
pub(super) fn time(value: &Value) -> String {
    let time = text(value);
    match time.split_once('T') {
        Some((date, time)) => format!("{date} {}", time.split(['.', 'Z', '+']).next().unwrap_or(time)),
        None => time,
    }
}

/// Ask before what cannot be undone; `--yes` answers where nobody can be asked.
pub(super) fn confirm(question: &str, yes: bool) -> Result<()> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::Usage(format!("{question} Say so with --yes.")));
    }
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { Err(Failure::Failed("nothing was done".into())) }
}

/// The bytes of a file, or of stdin for `-`.
pub(super) fn read(path: &std::path::Path) -> Result<Vec<u8>> {
    if path.as_os_str() == "-" {
        return read_stdin();
    }
    std::fs::read(path).map_err(|error| Failure::Failed(format!("{}: {error}", path.display())))
}

/// All of stdin.
pub(super) fn read_stdin() -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::io::stdin().lock(), &mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_in_the_unit_that_fits() {
        let shown = [0, 999, 1_000, 12_400, 999_949, 999_950, 3_100_000, 8_589_934_592].map(bytes);
        assert_eq!(shown, ["0 B", "999 B", "1.0 KB", "12.4 KB", "999.9 KB", "1.0 MB", "3.1 MB", "8.6 GB"]);
    }

    #[test]
    fn times_lose_their_fraction() {
        assert_eq!(time(&"2026-01-31T08:15:02.125Z".into()), "2026-01-31 08:15:02");
        assert_eq!(time(&Value::Null), "");
    }

    #[test]
    fn fields_read_without_quotes() {
        let value = serde_json::json!({ "a": "x", "b": ["x", "y"], "c": 1, "d": null });
        assert_eq!(["a", "b", "c", "d", "e"].map(|name| field(&value, name)), ["x", "x, y", "1", "", ""]);
    }
}
