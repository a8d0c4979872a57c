//! Settings and current database of one request.

use super::{
    super::engine::{Connection, QueryError},
    params::Parameters,
};
use crate::clickhouse::{quote_identifier, quote_text};

/// The mode of GET requests: nothing is changed, settings may be given.
const READ_ONLY: &str = "2";

/// Gives `connection` the request's database and settings.
pub(super) fn apply(connection: &mut Connection, parameters: &Parameters, read_only: bool) -> Result<(), QueryError> {
    if let Some(database) = &parameters.database {
        use_database(connection, database)?;
    }
    let mut assignments: Vec<String> = parameters
        .settings
        .iter()
        // A GET may ask for a stricter mode than its own, not for a looser one.
        .filter(|(name, value)| !(read_only && name == "readonly" && value != "1"))
        .map(|(name, value)| format!("{name} = {}", quote_text(value)))
        .collect();
    if read_only && !parameters.settings.iter().any(|(name, value)| name == "readonly" && value == "1") {
        assignments.push(format!("readonly = {READ_ONLY}"));
    }
    set(connection, &assignments)
}

/// What a session's connection had before a request's settings.
pub(super) struct Restore {
    database: Option<String>,
    assignments: Vec<String>,
}

impl Restore {
    /// Remembers the database and settings that `parameters` will change.
    pub(super) fn remember(connection: &mut Connection, parameters: &Parameters) -> Result<Self, QueryError> {
        let mut restore = Self { database: None, assignments: Vec::new() };
        if parameters.database.is_some() {
            let answer = connection.query(b"SELECT currentDatabase()", "JSONCompactEachRow", &[])?;
            let [database]: [String; 1] = parse(&answer.body)?;
            restore.database = Some(database);
        }
        if !parameters.settings.is_empty() {
            let names: Vec<String> = parameters.settings.iter().map(|(name, _)| quote_text(name)).collect();
            let sql =
                format!("SELECT name, value, changed::Bool FROM system.settings WHERE name IN ({})", names.join(", "));
            let answer = connection.query(sql.as_bytes(), "JSONCompactEachRow", &[])?;
            for line in answer.body.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
                let (name, value, changed): (String, String, bool) = parse(line)?;
                let value = if changed { quote_text(&value) } else { "DEFAULT".to_owned() };
                restore.assignments.push(format!("{name} = {value}"));
            }
        }
        Ok(restore)
    }

    /// Puts it back.
    pub(super) fn apply(self, connection: &mut Connection) -> Result<(), QueryError> {
        if let Some(database) = self.database {
            use_database(connection, &database)?;
        }
        set(connection, &self.assignments)
    }
}

fn set(connection: &mut Connection, assignments: &[String]) -> Result<(), QueryError> {
    if assignments.is_empty() {
        return Ok(());
    }
    let sql = format!("SET {}", assignments.join(", "));
    connection.query(sql.as_bytes(), "Null", &[]).map(drop)
}

fn use_database(connection: &mut Connection, database: &str) -> Result<(), QueryError> {
    connection.query(format!("USE {}", quote_identifier(database)).as_bytes(), "Null", &[]).map(drop)
}

fn parse<'a, T: serde::Deserialize<'a>>(line: &'a [u8]) -> Result<T, QueryError> {
    serde_json::from_slice(line)
        .map_err(|error| QueryError::new(1002, "UNKNOWN_EXCEPTION", format_args!("the session's state: {error}")))
}
