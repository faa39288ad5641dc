//! `chalet usage`: what a tenant used, by meter and time.

use clap::Args;
use reqwest::Method;

use super::Result;
use super::client::{Client, Connection, ForTenant};
use super::terminal::{field, say_json, table, text, time};

/// Show a tenant's usage by meter; without --meter, the meters that there are.
#[derive(Debug, Args)]
pub(super) struct Usage {
    #[command(flatten)]
    of: ForTenant,
    /// The meter.
    #[arg(long)]
    meter: Option<String>,
    /// From this time on, RFC 3339: 2026-01-31T00:00:00Z.
    #[arg(long, value_name = "TIME", requires = "meter")]
    from: Option<String>,
    /// Up to this time, which is not included.
    #[arg(long, value_name = "TIME", requires = "meter")]
    to: Option<String>,
    /// One row for each minute, hour, day or month.
    #[arg(long, requires = "meter")]
    window: Option<String>,
    /// One row for each value of these properties.
    #[arg(long, value_name = "NAME", requires = "meter")]
    group_by: Option<String>,
}

impl Usage {
    pub(super) async fn run(self, connection: &Connection) -> Result<()> {
        let client = Client::new(connection)?;
        let Some(meter) = &self.meter else {
            let meters = client.list(&self.of.path(&["meters"]), 1_000).await?;
            if connection.json {
                say_json(&meters.to_json());
                return Ok(());
            }
            let name = |meter| [field(meter, "name"), field(meter, "id")].into_iter().find(|name| !name.is_empty());
            let row =
                |meter| [name(meter).unwrap_or_default(), field(meter, "aggregation"), field(meter, "event_type")];
            let rows: Vec<_> = meters.data.iter().map(row).collect();
            table(["METER", "AGGREGATION", "EVENTS"], &rows, "no meters yet; a meter exists once it was recorded");
            return Ok(());
        };
        let mut query = vec![("meter", meter)];
        let optional = [("from", &self.from), ("to", &self.to), ("window", &self.window), ("group_by", &self.group_by)];
        query.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?))));
        let usage = client.json(client.request(Method::GET, &self.of.path(&["usage"])).query(&query)).await?;
        if connection.json {
            say_json(&usage);
            return Ok(());
        }
        let group = |row: &serde_json::Value| {
            let parts = row["group"].as_object().into_iter().flatten();
            parts.map(|(name, value)| format!("{name}={}", text(value))).collect::<Vec<_>>().join(" ")
        };
        let rows = usage["data"].as_array().into_iter().flatten();
        let rows: Vec<_> =
            rows.map(|row| [time(&row["from"]), time(&row["to"]), group(row), field(row, "value")]).collect();
        table(["FROM", "TO", "GROUP", "VALUE"], &rows, "nothing was used in that time");
        Ok(())
    }
}
