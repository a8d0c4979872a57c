//! The `dead-letters` commands.

use anyhow::{Context, Result, anyhow};

use super::{maintenance, settings};
use crate::{
    config::Config,
    dead_letters::commands::{self, Action, Places},
    ids::TenantId,
};

/// Carries out a `dead-letters` command and prints what came of it; `find` finds a tenant by its id or name.
///
/// # Errors
/// ClickHouse cannot be reached or refused, no engine runs for a replay, letters stay dead letters.
pub async fn dead_letters(config: &Config, action: Action, find: impl Fn(&str) -> Result<TenantId>) -> Result<()> {
    // It is the engine that does it.
    if let Action::Replay { chosen, json } = action {
        return commands::replay(&config.process.data_dir, chosen.filter(find)?, json);
    }
    let connection = maintenance::connect(config).await;
    let reached = || match &connection {
        Ok(connection) => Ok(connection.client().clone()),
        Err(error) => Err(anyhow!("{error:#}")),
    };
    let done = print(config, action, find, reached).await;
    if let Ok(connection) = connection {
        connection.stop().await;
    }
    done
}

async fn print(
    config: &Config,
    action: Action,
    find: impl Fn(&str) -> Result<TenantId>,
    reached: impl Fn() -> Result<crate::clickhouse::Client>,
) -> Result<()> {
    let places = || Places { client: reached(), folder: settings::dead_letters_folder(config) };
    match action {
        Action::List { which, all_states, limit, json } => {
            print!("{}", places().list(&which.filter(find)?, all_states, limit, json).await?);
            reached().context("only this node's files were searched")?;
        }
        Action::Show { letter, json } => print!("{}", places().show(letter, json).await?),
        Action::Drop { chosen, json } => {
            let dropped = commands::drop_letters(&reached()?, &chosen.filter(find)?).await?;
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
