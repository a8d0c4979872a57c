//! The `dead-letters` commands.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, Result, anyhow, bail};
use parking_lot::Mutex;
use uuid::Uuid;

use super::{maintenance, settings};
use crate::{
    config::Config,
    dead_letters::{
        commands::{self, Action, Places, Table},
        replay::{Filter, Summary},
    },
    error_chain::chain,
    ids::TenantId,
    ledger::UNKNOWN,
};

/// Carries out a `dead-letters` command and prints what came of it; `find` finds a tenant by its id or name.
///
/// # Errors
/// ClickHouse cannot be reached or refused, no engine runs for a replay, letters stay dead letters.
pub async fn dead_letters(config: &Config, action: Action, find: impl Fn(&str) -> Result<TenantId>) -> Result<()> {
    // It is the engine that does it.
    if let Action::Replay { chosen, json } = action {
        let filter = chosen.filter(find)?;
        warn_of_unknown(config, &filter);
        return replay(config.process.data_dir.clone(), filter, json).await;
    }
    // To look changes nothing, and begins nothing.
    let looks = matches!(action, Action::List { .. } | Action::Show { .. });
    let connection = match nothing_yet(config) {
        Some(nothing) if looks => return print(config, action, find, nothing).await,
        _ if looks => maintenance::reach(config).await,
        _ => maintenance::connect(config).await,
    };
    let table = match &connection {
        Ok(connection) => Table::In(Box::new(connection.client().clone())),
        Err(error) => Table::Away(anyhow::Error::msg(chain(&**error))),
    };
    let done = print(config, action, find, table).await;
    if let Ok(connection) = connection {
        connection.stop().await;
    }
    done
}

/// What is to be said where no ClickHouse is known, and none was ever started.
fn nothing_yet(config: &Config) -> Option<Table> {
    let path = config.clickhouse_path();
    if config.clickhouse.url.is_some() || path.exists() {
        return None;
    }
    Some(if config.process.roles.sink {
        Table::NotYet(format!("nothing was ever stored in {}", path.display()))
    } else {
        let why = "this node knows none: set clickhouse.url, which a node with the API alone needs for commands only";
        Table::Away(anyhow!(why))
    })
}

/// In a thread of its own, which nobody waits for when the command is cut off.
async fn replay(data_dir: PathBuf, filter: Filter, json: bool) -> Result<()> {
    let done = Arc::new(Mutex::new(Summary::default()));
    let (tell, told) = tokio::sync::oneshot::channel();
    let counted = Arc::clone(&done);
    std::thread::spawn(move || tell.send(commands::replay(&data_dir, filter, json, &counted)));
    tokio::select! {
        result = told => result.context("the command's thread has ended")?,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.context("listening for SIGINT")?;
            bail!("cut off; {}", done.lock().cut_off())
        }
    }
}

/// Letters of a tenant outlive it, and `auth.url` knows tenants that are in no file: it need not be a mistake.
fn warn_of_unknown(config: &Config, filter: &Filter) {
    let known =
        |tenant: &Uuid| *tenant == UNKNOWN.0 || config.tenants.tenants.iter().any(|known| known.id.0 == *tenant);
    if let Some(tenant) = filter.tenant.filter(|tenant| !known(tenant)) {
        eprintln!(
            "warning: there is no tenant {tenant} in the tenants' file; `ingestion-engine tenants list` shows those"
        );
    }
}

async fn print(config: &Config, action: Action, find: impl Fn(&str) -> Result<TenantId>, table: Table) -> Result<()> {
    let places = Places { table, folder: settings::dead_letters_folder(config) };
    match action {
        Action::List { which, all_states, limit, json } => {
            let filter = which.filter(find)?;
            warn_of_unknown(config, &filter);
            places.list(&filter, all_states, limit, json).await?;
        }
        Action::Show { letter, json } => print!("{}", places.show(letter, json).await?),
        Action::Drop { chosen, json } => {
            let filter = chosen.filter(find)?;
            warn_of_unknown(config, &filter);
            let dropped = match places.table {
                Table::In(client) => commands::drop_letters(&client, &filter).await?,
                Table::Away(error) => return Err(error),
                // Only who looks is told so.
                Table::NotYet(why) => bail!(why),
            };
            if json {
                println!("{}", serde_json::json!({"dropped": dropped}));
            } else {
                println!("{dropped} dropped");
            }
        }
        // The caller's.
        Action::Replay { .. } => {}
    }
    Ok(())
}
