//! From measurements to a table: medians, and ratios within a round.

use std::fmt::Write as _;

/// What one load of one contestant showed.
pub struct Figures {
    /// Requests answered a second.
    pub per_second: f64,
    /// Half of the answers came within this.
    pub p50_ms: f64,
    /// 99 of 100 answers came within this.
    pub p99_ms: f64,
    /// CPU time of the server, a request.
    pub cpu_us: f64,
    /// CPU time of the database, a request, where it is another process.
    pub database_us: Option<f64>,
    /// Commits that shared a transaction of the database.
    pub commits_a_batch: Option<f64>,
    /// Memory of the server at the end.
    pub resident_mib: f64,
}

/// A contestant at a number of connections.
pub struct Row {
    /// The contestant.
    pub name: &'static str,
    /// Connections at a time.
    pub connections: u32,
    /// A measurement each round.
    pub rounds: Vec<Figures>,
}

impl Row {
    /// A row without measurements.
    pub fn new(name: &'static str, connections: u32) -> Self {
        Self { name, connections, rounds: Vec::new() }
    }

    fn median(&self, of: impl Fn(&Figures) -> f64) -> f64 {
        sorted(self.rounds.iter().map(of))[self.rounds.len() / 2]
    }

    /// The median, or a dash where there is nothing to measure.
    fn median_if_any(&self, of: impl Fn(&Figures) -> Option<f64>) -> String {
        if self.rounds.iter().all(|figures| of(figures).is_none()) {
            return "-".into();
        }
        format!("{:.1}", self.median(|figures| of(figures).unwrap_or(f64::NAN)))
    }

    /// The median of the rounds' ratios, with the least and the greatest.
    fn ratio(&self, yardstick: &Self) -> String {
        let pairs = self.rounds.iter().zip(&yardstick.rounds);
        let ratios = sorted(pairs.map(|(own, bare)| own.per_second / bare.per_second));
        let (least, greatest) = (ratios[0], ratios[ratios.len() - 1]);
        format!("**{:.3}** ({least:.3}-{greatest:.3})", ratios[ratios.len() / 2])
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values
}

/// The table. Of each number of connections, the first row is the yardstick.
pub fn markdown(rows: &[Row]) -> String {
    let mut text = String::from(
        "| contestant | connections | requests/s | of bare axum | p50 ms | p99 ms | CPU us a request | database's CPU us \
         | commits a batch | resident MiB |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for row in rows {
        let yardstick = rows.iter().find(|other| other.connections == row.connections).unwrap_or(row);
        let _ = writeln!(
            text,
            "| {} | {} | {:.0} | {} | {:.2} | {:.2} | {:.1} | {} | {} | {:.0} |",
            row.name,
            row.connections,
            row.median(|figures| figures.per_second),
            row.ratio(yardstick),
            row.median(|figures| figures.p50_ms),
            row.median(|figures| figures.p99_ms),
            row.median(|figures| figures.cpu_us),
            row.median_if_any(|figures| figures.database_us),
            row.median_if_any(|figures| figures.commits_a_batch),
            row.median(|figures| figures.resident_mib),
        );
    }
    text
}
