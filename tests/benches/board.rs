//! From measurements to a table: medians, and ratios within a round.

use std::fmt::Write as _;

use crate::contestants::{Contestant, Group};

/// What one load of one contestant showed.
pub struct Figures {
    /// Requests answered a second.
    pub per_second: f64,
    /// Half of the answers came within this.
    pub p50_ms: Option<f64>,
    /// 99 of 100 answers came within this.
    pub p99_ms: Option<f64>,
    /// CPU time of the server, a request.
    pub cpu_us: Option<f64>,
    /// CPU time of the database, a request, where it is another process.
    pub database_us: Option<f64>,
    /// Commits that shared a transaction of the database.
    pub commits_a_batch: Option<f64>,
    /// Memory of the server at the end.
    pub resident_mib: Option<f64>,
}

/// A contestant at a number of connections.
pub struct Row {
    /// The contestant.
    pub name: &'static str,
    title: &'static str,
    group: Group,
    beside: &'static str,
    /// Connections at a time.
    pub connections: u32,
    /// A measurement each round.
    pub rounds: Vec<Figures>,
}

/// All rows, and who has none.
pub struct Board {
    /// What was measured.
    pub rows: Vec<Row>,
    /// Titles of what could not be measured, with the reasons.
    pub missing: Vec<(String, String)>,
}

/// Ratios of rounds: the median, the least and the greatest.
#[derive(Clone, Copy)]
pub struct Ratio {
    /// The median.
    pub median: f64,
    least: f64,
    greatest: f64,
}

impl Row {
    fn median(&self, of: impl Fn(&Figures) -> Option<f64>) -> Option<f64> {
        median(self.rounds.iter().filter_map(of))
    }
}

impl Board {
    /// A board without measurements.
    pub fn new(contestants: &[Contestant]) -> Self {
        let row = |one: &Contestant, connections: u32| Row {
            name: one.name,
            title: one.title,
            group: one.group,
            beside: one.beside,
            connections,
            rounds: Vec::new(),
        };
        let rows =
            contestants.iter().flat_map(|one| one.connections.iter().map(move |connections| row(one, *connections)));
        Self { rows: rows.collect(), missing: Vec::new() }
    }

    /// A contestant's row.
    pub fn row(&self, name: &str, connections: u32) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name && row.connections == connections)
    }

    /// Put a round's figures down.
    pub fn add(&mut self, name: &str, connections: u32, figures: Figures) {
        if let Some(row) = self.rows.iter_mut().find(|row| row.name == name && row.connections == connections) {
            row.rounds.push(figures);
        }
    }

    /// Take a contestant out, since it has no figures for a reason.
    pub fn remove(&mut self, contestant: &Contestant, reason: String) {
        self.rows.retain(|row| row.name != contestant.name);
        self.missing.push((contestant.title.to_owned(), reason));
    }

    /// A figure of a contestant, the median of its rounds.
    pub fn median(&self, name: &str, connections: u32, of: impl Fn(&Figures) -> Option<f64>) -> Option<f64> {
        self.row(name, connections)?.median(of)
    }

    /// Requests a second of one contestant over another's in the same round.
    pub fn ratio(&self, name: &str, beside: &str, connections: u32) -> Option<Ratio> {
        let (own, other) = (self.row(name, connections)?, self.row(beside, connections)?);
        let pairs = own.rounds.iter().zip(&other.rounds);
        let ratios = sorted(pairs.map(|(own, other)| own.per_second / other.per_second));
        Some(Ratio { median: *ratios.get(ratios.len() / 2)?, least: *ratios.first()?, greatest: *ratios.last()? })
    }

    /// The tables, a group each.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        for group in Group::ALL {
            let rows: Vec<&Row> = self.rows.iter().filter(|row| row.group == group && !row.rounds.is_empty()).collect();
            if rows.is_empty() {
                continue;
            }
            let _ = write!(
                text,
                "### {}\n\n| contestant | connections | requests/s | ratio | of | p50 ms | p99 ms | CPU us a request \
                 | database's CPU us | commits a batch | resident MiB |\n|---|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|\n",
                group.title()
            );
            for row in rows {
                let figure = |digits: usize, of: fn(&Figures) -> Option<f64>| match row.median(of) {
                    Some(value) => format!("{value:.digits$}"),
                    None => "-".into(),
                };
                let ratio = self.ratio(row.name, row.beside, row.connections).map_or("-".into(), |ratio| {
                    format!("**{:.3}** ({:.3}-{:.3})", ratio.median, ratio.least, ratio.greatest)
                });
                let beside = if row.beside == row.name { "-" } else { row.beside };
                let _ = writeln!(
                    text,
                    "| {} | {} | {} | {ratio} | {beside} | {} | {} | {} | {} | {} | {} |",
                    row.title,
                    row.connections,
                    figure(0, |figures| Some(figures.per_second)),
                    figure(2, |figures| figures.p50_ms),
                    figure(2, |figures| figures.p99_ms),
                    figure(1, |figures| figures.cpu_us),
                    figure(1, |figures| figures.database_us),
                    figure(1, |figures| figures.commits_a_batch),
                    figure(0, |figures| figures.resident_mib),
                );
            }
            text.push('\n');
        }
        if !self.missing.is_empty() {
            text.push_str("### Not measured\n\n");
            for (who, why) in &self.missing {
                let _ = writeln!(text, "- {who}: {why}");
            }
        }
        text
    }
}

/// The one in the middle.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let values = sorted(values);
    values.get(values.len() / 2).copied()
}

fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_unstable_by(f64::total_cmp);
    values
}
