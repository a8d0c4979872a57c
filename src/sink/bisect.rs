//! Which rows of a block does ClickHouse refuse?
//!
//! ```text
//! refused --of a constraint?--> ask for the rows that break it, all at once --> the others into the table of trials: taken
//!    | of anything else                                                         | refused: the next constraint, or below
//!    +--> halves into the table of trials (ENGINE = Null): taken | refused --> halves .. --> rows that are refused alone
//! refused rows --> dead letters, on disk --> the block without them, under its own token
//! ```
//!
//! - The table of the trials has the columns and the constraints of the real one and no views, so that a trial stores
//!   nothing: what it says is the only thing that comes of it. Halves that were really inserted, each under a token of its
//!   own, would be rows twice when the cause is mended before a crash is, and the whole block is taken then.
//! - Halving costs about as many trials as there are rows when a fifth of them is refused, at some milliseconds each. A constraint
//!   is the usual cause, and its error names the expression: ClickHouse evaluates it over the rows ([`Trial::breaking`]). What it
//!   says is believed if some of these rows, tried alone, are refused as well.
//! - The rest goes in under the token of the whole range. A repeat after a crash leaves out what the dead letters have and
//!   has the same token, whatever ClickHouse says of these rows by then.
//! - What was found is handed over from time to time, and at once when the engine stops: it is kept, the range begins again
//!   without it, and so nothing that was found is looked for twice.
//! - Tables that a crash has left are used or made anew, and dropped, by the repeat of its range.
//! - No row is refused before something shows that the table takes rows, and not it is what is wrong (its columns were changed,
//!   say): another row of the block is taken, or one of those that were stored lately. If none is, the range waits, as for
//!   everything that an operator must mend. When nothing was stored yet since the start, a large block of which nothing is taken
//!   says that it is the table.

use std::collections::HashSet;

use bytes::Bytes;
use futures_util::future::join_all;
use rand::seq::{IndexedRandom as _, IteratorRandom as _};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    insert::{column_list, insert_block, insert_settings},
    recount::{self, Row},
    source::Block,
};
use crate::{
    clickhouse::{Client, Kind, QueryError, quote_identifier},
    ids::WalId,
    row::{BinaryError, Place, Table},
};

/// So many refused rows without one that is taken raise the question whether it is the table.
const SUSPICIOUS: usize = 64;
/// So many others are asked then.
const SAMPLES: usize = 64;
/// Trials at a time.
const AT_A_TIME: usize = 4;
/// So many rows that halving has found are handed over.
const HANDED_OVER: usize = 128;
/// So many constraints, one after the other, are asked about.
const MOST_CONSTRAINTS: usize = 32;
/// So many of the rows that are said to break a constraint are tried alone.
const SPOT_CHECKS: usize = 4;

/// Why refused rows could not be told.
#[derive(Debug, thiserror::Error)]
pub(super) enum BisectError {
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error("the rows of the range cannot be read")]
    Rows(#[from] BinaryError),
    #[error(
        "ClickHouse refuses every row for table {table}, those that it took lately too, so it is the table that must be \
         mended: {reason}"
    )]
    Table { table: &'static str, reason: String },
}

/// A row that ClickHouse refuses.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) place: Place,
    /// What ClickHouse says of it.
    pub(super) reason: String,
    pub(super) bytes: Bytes,
}

/// What a search has come to.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) refused: Vec<Refused>,
    /// Whether it ended before every row was asked.
    pub(super) cut_short: bool,
}

/// What is searched.
pub(super) struct Search<'a> {
    pub(super) client: &'a Client,
    pub(super) table: Table,
    pub(super) block: &'a Block,
    /// Names the range.
    pub(super) token: String,
    /// Rows that the table has taken lately.
    pub(super) samples: Vec<Bytes>,
    pub(super) stop: &'a CancellationToken,
    /// Is told, again and again, how many rows are left and how many were found to be refused.
    pub(super) progress: &'a (dyn Fn(usize, usize) + Sync),
}

/// The tables of the trials, and what they are to say.
struct Trial<'a> {
    search: &'a Search<'a>,
    database: String,
    /// Takes what the real one takes, and keeps nothing.
    name: String,
    /// Takes every row, for a moment.
    rows_name: String,
    rows: Vec<Row>,
}

/// Rows by their place in the block, and why they are refused.
type Reasons = Vec<(usize, String)>;

#[derive(clickhouse::Row, Deserialize)]
#[expect(clippy::struct_field_names, reason = "columns")]
struct Entered {
    #[serde(with = "clickhouse::serde::uuid")]
    wal_id: Uuid,
    wal_seq: u64,
    wal_ordinal: u32,
}

/// The rows of a block that its table does not take; it has said `error` of the whole of it.
pub(super) async fn refused(search: &Search<'_>, error: &QueryError) -> Result<Found, BisectError> {
    let body = search.block.body.by_row();
    let rows = recount::read(search.table, &body)?.0;
    let (client, real) = (search.client, search.table.name());
    let name = format!("{real}_trial_{:08x}", crc32c::crc32c(search.token.as_bytes()));
    let trial =
        Trial { search, database: quote_identifier(client.database()), rows_name: format!("{name}_rows"), name, rows };
    let Trial { database, name, rows_name, .. } = &trial;
    client.execute(&format!("CREATE TABLE IF NOT EXISTS {database}.{name} AS {database}.{real} ENGINE = Null")).await?;
    let result = trial.find(error).await;
    for name in [name, rows_name] {
        client.execute(&format!("DROP TABLE IF EXISTS {database}.{name} SYNC")).await?;
    }
    let (reasons, cut_short) = result?;
    let refused = reasons.into_iter().filter_map(|(row, reason)| {
        let row = trial.rows.get(row)?;
        Some(Refused { place: row.place(), reason, bytes: body.slice(row.start..row.end) })
    });
    Ok(Found { refused: refused.collect(), cut_short })
}

impl Trial<'_> {
    async fn find(&self, error: &QueryError) -> Result<(Reasons, bool), BisectError> {
        let mut refused = Reasons::new();
        let mut left: Vec<usize> = (0..self.rows.len()).collect();
        let mut said = self.words(error);
        // Each turn finds the rows that break one constraint; they may break others too.
        for _ in 0..MOST_CONSTRAINTS {
            (self.search.progress)(left.len(), refused.len());
            let Some((reason, broken)) = self.breaking(&said, &left).await else { break };
            left.retain(|row| !broken.contains(row));
            refused.extend(broken.into_iter().map(|row| (row, reason.clone())));
            match self.refusal(&left).await? {
                Some(error) => said = self.words(&error),
                None => return self.judged(refused, !left.is_empty(), said).await.map(|refused| (refused, false)),
            }
        }
        self.halve(&left, refused, said).await
    }

    /// Finds the rows of `left` that are refused alone, and adds them to `refused`. The second value says whether it ended before
    /// it had them all.
    async fn halve(
        &self,
        left: &[usize],
        mut refused: Reasons,
        mut said: String,
    ) -> Result<(Reasons, bool), BisectError> {
        let (before, mut works) = (refused.len(), false);
        // What is left to be asked.
        let mut pieces = vec![left];
        while !pieces.is_empty() {
            (self.search.progress)(pieces.iter().map(|piece| piece.len()).sum(), refused.len());
            if refused.len() - before >= SUSPICIOUS && !works && self.rows.len() > SUSPICIOUS {
                let others: Vec<usize> =
                    pieces.iter().copied().flatten().copied().choose_multiple(&mut rand::rng(), SAMPLES);
                works = self.takes_a_sample().await? || self.takes_one_of(&others).await?;
                if !works {
                    return Err(BisectError::Table { table: self.search.table.name(), reason: said });
                }
            }
            if self.search.stop.is_cancelled() || refused.len() - before >= HANDED_OVER {
                return Ok((if works { refused } else { Reasons::new() }, true));
            }
            let asked = pieces.split_off(pieces.len().saturating_sub(AT_A_TIME));
            let answers = join_all(asked.iter().map(|piece| self.refusal(piece))).await;
            for (piece, answer) in asked.into_iter().zip(answers) {
                match (answer, piece) {
                    (Ok(None), _) => works = true,
                    (Ok(Some(error)), [row]) => {
                        said = self.words(&error);
                        refused.push((*row, said.clone()));
                    }
                    (Ok(Some(_)), _) => {
                        let (first, second) = piece.split_at(piece.len() / 2);
                        pieces.extend([second, first]);
                    }
                    (Err(_), _) if works && !refused.is_empty() => return Ok((refused, true)),
                    (Err(error), _) => return Err(error),
                }
            }
        }
        Ok((self.judged(refused, works, said).await?, false))
    }

    /// `refused`, which are all of the block's, unless it is the table that is wrong; it `works` if it takes another row.
    async fn judged(&self, refused: Reasons, works: bool, said: String) -> Result<Reasons, BisectError> {
        let few = self.search.samples.is_empty() && self.rows.len() <= SUSPICIOUS;
        if works || refused.is_empty() || few || self.takes_a_sample().await? {
            return Ok(refused);
        }
        Err(BisectError::Table { table: self.search.table.name(), reason: said })
    }

    /// Those of the rows `left` that break the constraint of which `said` tells, and what to say of them. None if it tells of
    /// none, or if what ClickHouse says of them does not fit together: halving finds them too.
    async fn breaking(&self, said: &str, left: &[usize]) -> Option<(String, HashSet<usize>)> {
        let (reason, expression) = violated(said)?;
        let places = match self.where_not(expression, left).await {
            Ok(places) => places,
            Err(error) => {
                tracing::debug!(%error, expression, "a constraint cannot be asked about");
                return None;
            }
        };
        let is_broken = |row: &usize| self.rows.get(*row).is_some_and(|row| places.contains(&row.place()));
        let broken: Vec<usize> = left.iter().copied().filter(is_broken).collect();
        let checked: Vec<usize> = broken.choose_multiple(&mut rand::rng(), SPOT_CHECKS).copied().collect();
        let alone = join_all(checked.iter().map(|row| self.refusal(std::slice::from_ref(row)))).await;
        let holds = !alone.is_empty() && alone.iter().all(|refusal| matches!(refusal, Ok(Some(_))));
        holds.then(|| (reason, broken.into_iter().collect()))
    }

    /// Where the rows of `left` entered for which `expression` does not hold.
    async fn where_not(&self, expression: &str, left: &[usize]) -> Result<HashSet<Place>, BisectError> {
        let Search { client, table, .. } = self.search;
        let (database, into) = (&self.database, &self.rows_name);
        let columns = column_list(table.columns(), &[]);
        client.execute(&format!("DROP TABLE IF EXISTS {database}.{into} SYNC")).await?;
        let create = format!(
            "CREATE TABLE {database}.{into} ENGINE = Memory EMPTY AS SELECT {columns} FROM {database}.{}",
            table.name()
        );
        client.execute(&create).await?;
        self.insert(into, left).await?;
        let sql =
            format!("SELECT wal_id, wal_seq, wal_ordinal FROM {database}.{into} WHERE ifNull(({expression}), 0) = 0");
        let entered: Vec<Entered> = client.fetch(&sql).await?;
        Ok(entered.into_iter().map(|entered| (WalId(entered.wal_id), entered.wal_seq, entered.wal_ordinal)).collect())
    }

    /// Whether the table takes one of those that it took lately.
    async fn takes_a_sample(&self) -> Result<bool, BisectError> {
        for sample in &self.search.samples {
            if self.refusal_of(sample.clone(), 1).await?.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn takes_one_of(&self, rows: &[usize]) -> Result<bool, BisectError> {
        for row in rows {
            if self.refusal(std::slice::from_ref(row)).await?.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Why `rows` are refused together, if they are.
    async fn refusal(&self, rows: &[usize]) -> Result<Option<QueryError>, BisectError> {
        if rows.is_empty() {
            return Ok(None);
        }
        as_refusal(self.insert(&self.name, rows).await)
    }

    async fn refusal_of(&self, body: Bytes, rows: usize) -> Result<Option<QueryError>, BisectError> {
        as_refusal(self.insert_body(&self.name, body, rows).await)
    }

    async fn insert(&self, into: &str, rows: &[usize]) -> Result<(), BisectError> {
        let body = self.search.block.body.by_row();
        let bytes = |row: &usize| self.rows.get(*row).and_then(|row| body.get(row.start..row.end)).unwrap_or_default();
        let gathered: Vec<u8> = rows.iter().flat_map(bytes).copied().collect();
        self.insert_body(into, Bytes::from(gathered), rows.len()).await
    }

    async fn insert_body(&self, into: &str, body: Bytes, rows: usize) -> Result<(), BisectError> {
        let Search { client, table, .. } = self.search;
        // Never taken for a repeat: nothing is remembered of these tables.
        insert_block(client, into, *table, &Block { rows, body: body.into() }, &insert_settings(&"trial", rows)).await
    }

    /// What `error` says, of the real table.
    fn words(&self, error: &QueryError) -> String {
        of_table(error.text(), &self.name, self.search.table.name())
    }
}

fn as_refusal(result: Result<(), BisectError>) -> Result<Option<QueryError>, BisectError> {
    match result {
        Ok(()) => Ok(None),
        Err(BisectError::Query(error)) if *error.kind() == Kind::Data => Ok(Some(error)),
        Err(error) => Err(error),
    }
}

/// `text` of table `real` where it tells of its `trial`, without what the trial alone had: its id, and the row in it.
fn of_table(text: &str, trial: &str, real: &str) -> String {
    let text = text.replace(trial, real);
    let mut words = String::new();
    let mut rest = &text[..];
    while let Some((before, after)) = rest.split_once(" (") {
        words.push_str(before);
        match after.split_once(')') {
            Some((inside, after)) if Uuid::try_parse(inside).is_ok() => rest = after,
            _ => {
                words.push_str(" (");
                rest = after;
            }
        }
    }
    words.push_str(rest);
    let Some((before, after)) = words.split_once(VIOLATED) else { return words };
    let after = after.trim_start_matches(|c: char| c.is_ascii_digit());
    format!("{before} is violated{after}")
}

/// How an error of a constraint goes on after its name.
const VIOLATED: &str = " is violated at row ";

/// What an error, as [`of_table`] gives it, says of a constraint, and the constraint's expression. Values, which a client has
/// chosen, stand behind it.
fn violated(said: &str) -> Option<(String, &str)> {
    if !said.starts_with("Code: 469.") {
        return None;
    }
    let (_, rest) = said.split_once(" is violated. Expression: (")?;
    let (expression, _) = rest.split_once("). Column values: ")?;
    let end = said.find("). Column values: ")?;
    Some((format!("{})", said.get(..end)?), expression))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn an_error_is_told_of_the_real_table_and_names_the_constraint() {
        let said = "Code: 469. DB::Exception: Constraint `no_evil` for table o.events_trial_0a (5e839d46-2035-48c0-ae63-9fbac0d31c6d) \
                    is violated at row 10. Expression: (name != 'a (b)'). Column values: name = 'x). Column values: '. (VIOLATED_CONSTRAINT)";
        let said = of_table(said, "events_trial_0a", "events");
        let (reason, expression) = violated(&said).unwrap();
        assert_eq!(expression, "name != 'a (b)'");
        assert_eq!(
            reason,
            "Code: 469. DB::Exception: Constraint `no_evil` for table o.events is violated. Expression: (name != 'a (b)')"
        );
        assert!(said.ends_with("Column values: name = 'x). Column values: '. (VIOLATED_CONSTRAINT)"), "{said}");
        assert_eq!(violated("Code: 72. DB::Exception: Cannot parse. Expression: (x). Column values: y"), None);
    }
}
