//! `ingestion-engine retention apply TENANT`: what is stored already gets the retention that its tenant has now.
//!
//! New rows get it by themselves. Stored ones carry the `expires_at` that they were accepted with; it is part of the
//! partition key and cannot be updated, so they are copied and the copies take their place ([`apply`]).
//!
//! - One run at a time, and none beside `erase` or `tenants purge`: a lock in the data folder. Of commands with other data
//!   folders on one server it knows nothing.
//! - Not on a cluster: what is copied on one replica would have to be deleted on all of them. Such a run is refused.

mod apply;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;

use crate::{config::Config, event, ids::TenantId, serve, tenants::commands::find};

const EXAMPLES: &str = "\
TENANT is a tenant's id, or its name where only one has it; what it is to have is read from the tenants' file. Works \
beside a running engine and without one. A run that was ended in between loses nothing: the next one goes on.

Examples:
  ingestion-engine --config engine.toml retention apply acme
  ingestion-engine --config engine.toml retention apply acme --json";

/// Arguments of the `retention` subcommand.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(after_help = EXAMPLES)]
pub struct RetentionArgs {
    /// What to do
    #[command(subcommand)]
    pub action: RetentionAction,
}

/// What to do with stored rows.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum RetentionAction {
    /// Give a tenant's stored rows the retention that it has now
    Apply {
        /// The tenant's id or name
        tenant: String,
        /// The report as JSON
        #[arg(long)]
        json: bool,
        /// Ends the process after this step of the first table (tests of what a crash leaves).
        #[arg(long, value_name = "N", hide = true)]
        stop_after: Option<u8>,
    },
}

/// What was done with the rows of one table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Done {
    table: String,
    /// Rows that have another expiry than before.
    rewritten: u64,
    /// Rows that are gone, because their time is over already.
    dropped: u64,
    /// When the last of the rewritten ones expires, or `never`; absent when there is none.
    kept_until: Option<String>,
}

/// What begins the names of a tenant's complete copies, which hold rows that are in no other table.
pub fn copies_of(tenant: TenantId) -> String {
    apply::ready_prefix(tenant.0)
}

/// Carries out `action` and prints what came of it.
///
/// # Errors
/// No such tenant, ClickHouse's errors, another run; the next run goes on where this one ended.
pub async fn run(action: RetentionAction, config: &Config) -> Result<()> {
    let RetentionAction::Apply { tenant, json, stop_after } = action;
    let tenant = find(&config.tenants.tenants, &tenant)?;
    if config.clickhouse.cluster.is_some() {
        bail!(
            "`retention apply` does not work on a cluster (clickhouse.cluster); new events have the retention at once"
        );
    }
    let retention = event::Retention::of(tenant.retention.duration());
    let _one_at_a_time = serve::maintenance::lock(config)?;
    let clickhouse = serve::maintenance::connect(config).await?;
    let done = apply::apply(clickhouse.client(), tenant.id.0, retention, stop_after).await;
    clickhouse.stop().await;
    let done = done?;
    if json {
        let report = json!({"tenant": tenant.id.0, "retention": tenant.retention.to_string(), "tables": done});
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    println!("Rows of {} are kept: {}", tenant.id, tenant.retention);
    if done.is_empty() {
        println!("Every stored row had that already.");
    }
    for Done { table, rewritten, dropped, kept_until } in done {
        let until = kept_until.map_or_else(String::new, |until| format!(", the last of them until {until}"));
        println!("{table}: {rewritten} rows rewritten{until}; {dropped} dropped, their time is over");
    }
    Ok(())
}
