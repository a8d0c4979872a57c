//! One request on a blocking thread: body to statement and data, connection, execution, answer.

use bytes::Bytes;

use super::{
    super::{
        child::end_now,
        engine::{Connection, Engine, Outcome, QueryError, Summary},
    },
    blocks::{self, Block},
    chunks::Chunks,
    encoding, multipart,
    params::Parameters,
    session::Sessions,
    settings::{self, Restore},
    statement::{self, InsertHead, Statement},
};

/// Bytes of a body in which an INSERT's own text must end, as a server's `max_query_size`.
const MAX_INSERT_HEAD: usize = 256 << 10;

/// Longest text of any other statement; the engine's parser has its own, lower default (`max_query_size`).
const MAX_STATEMENT: usize = 16 << 20;

/// A request whose body was received completely.
pub(super) struct Job {
    pub(super) parameters: Parameters,
    pub(super) body: Chunks,
    pub(super) content_type: String,
    pub(super) content_encoding: String,
    /// The method is GET: nothing may be changed.
    pub(super) read_only: bool,
    /// Longest body after `Content-Encoding` is undone.
    pub(super) decoded_limit: usize,
}

/// What the client gets.
pub(super) struct Answer {
    pub(super) body: Bytes,
    /// The body's format; empty when there is no body to speak of.
    pub(super) format: String,
    pub(super) summary: Summary,
    pub(super) query_id: Option<String>,
    /// The body consists of ClickHouse's compressed blocks.
    pub(super) blocks: bool,
}

/// The data of an INSERT.
enum Data {
    Plain(Chunks),
    Compressed(Vec<Block>),
}

impl Data {
    fn is_empty(&self) -> bool {
        match self {
            Self::Plain(chunks) => chunks.is_empty(),
            Self::Compressed(blocks) => blocks.is_empty(),
        }
    }

    /// As plain pieces: for statements and for data that something must be put before.
    fn into_plain(self) -> Result<Chunks, QueryError> {
        match self {
            Self::Plain(chunks) => Ok(chunks),
            Self::Compressed(blocks) => {
                let mut plain = Chunks::default();
                for block in blocks {
                    let mut scratch = Vec::new();
                    let data = block.decode(&mut scratch)?;
                    plain.push(Bytes::copy_from_slice(data));
                }
                Ok(plain)
            }
        }
    }
}

/// What is to be run.
enum Task {
    Insert { sql: Vec<u8>, format: String, data: Data },
    Query { sql: Vec<u8>, format: String },
}

/// Runs a request to its end.
pub(super) fn run(engine: &Engine, sessions: &Sessions, job: Job) -> Result<Answer, QueryError> {
    let Job { mut parameters, body, content_type, content_encoding, read_only, decoded_limit } = job;
    let mut body = encoding::decode(&content_encoding, body, decoded_limit)?;
    if let Some(boundary) = multipart::boundary(&content_type) {
        multipart::read(&body.join(), boundary, &mut parameters)?;
        body = Chunks::default();
    }
    let data = if parameters.decompress { Data::Compressed(blocks::split(body)?) } else { Data::Plain(body) };
    let task = plan(&parameters, data)?;
    let changes = !read_only && changes(engine, &task);

    let (outcome, format) = if let Some(request) = parameters.session()? {
        let mut session = sessions.check_out(engine, &request)?;
        let (executed, restored) = in_session(session.connection()?, &parameters, read_only, task);
        if restored.is_err() || request.closes {
            session.discard();
        }
        executed?
    } else {
        let mut connection = engine.connect()?;
        settings::apply(&mut connection, &parameters, read_only)?;
        execute(&mut connection, &parameters, task)?
    };
    if changes {
        settle(engine);
    }
    let Outcome { mut body, summary } = outcome;
    if parameters.compress && !body.is_empty() {
        body = blocks::compress(&body)?;
    }
    Ok(Answer { body, format, summary, query_id: parameters.query_id, blocks: parameters.compress })
}

/// Whether the statement may change what is on disk.
fn changes(engine: &Engine, task: &Task) -> bool {
    match task {
        Task::Insert { .. } => true,
        Task::Query { sql, .. } => !engine.is_read_only(sql),
    }
}

/// Waits for the disk before the answer. After a failure the kernel may forget what it could not write, and say nothing
/// the next time: the process ends, nothing is answered, and the client repeats its statement to the next one.
fn settle(engine: &Engine) {
    if let Err(error) = engine.settle() {
        tracing::error!(%error, "what a statement changed cannot be made durable: the process ends");
        end_now();
    }
}

/// Finds statement and data: the statement is the `query` parameter, or the body, or both joined by a line end.
fn plan(parameters: &Parameters, data: Data) -> Result<Task, QueryError> {
    let url_text = parameters.query.as_bytes();
    let named_format = parameters.default_format.as_deref();
    if url_text.trim_ascii().is_empty() {
        return plan_body(data.into_plain()?, named_format);
    }
    match statement::analyse(url_text, true)? {
        Statement::Insert(InsertHead { sql, format, data: at }) => {
            let tail = url_text.get(at..).unwrap_or_default();
            if format.is_none() && data.is_empty() && tail.trim_ascii().is_empty() {
                return Ok(Task::Query { sql, format: output_format(None, named_format) });
            }
            let data = if tail.trim_ascii().is_empty() {
                data
            } else {
                let mut plain = data.into_plain()?;
                if !plain.is_empty() {
                    plain.push_front(Bytes::from_static(b"\n"));
                }
                plain.push_front(Bytes::copy_from_slice(tail));
                Data::Plain(plain)
            };
            let format = format.or_else(|| named_format.map(str::to_owned)).unwrap_or_else(|| "Values".to_owned());
            Ok(Task::Insert { sql, format, data })
        }
        Statement::Query { format } if data.is_empty() => {
            Ok(Task::Query { sql: url_text.to_vec(), format: output_format(format, named_format) })
        }
        Statement::Query { .. } => {
            let mut text = data.into_plain()?;
            text.push_front(Bytes::from_static(b"\n"));
            text.push_front(Bytes::copy_from_slice(url_text));
            plan_body(text, named_format)
        }
    }
}

/// The statement is in `body`, and behind an INSERT its data.
fn plan_body(mut body: Chunks, named_format: Option<&str>) -> Result<Task, QueryError> {
    let head = body.split_to(MAX_INSERT_HEAD);
    if head.trim_ascii().is_empty() && body.is_empty() {
        return Err(QueryError::new(62, "SYNTAX_ERROR", "Syntax error: Empty query"));
    }
    if statement::first_keyword(&head) == Some("INSERT")
        && let Statement::Insert(InsertHead { sql, format, data }) = statement::analyse(&head, body.is_empty())?
    {
        body.push_front(head.slice(data..));
        return match format {
            None if body.is_empty() => Ok(Task::Query { sql, format: output_format(None, named_format) }),
            format => {
                let format = format.or_else(|| named_format.map(str::to_owned)).unwrap_or_else(|| "Values".to_owned());
                Ok(Task::Insert { sql, format, data: Data::Plain(body) })
            }
        };
    }
    body.push_front(head);
    if body.len() > MAX_STATEMENT {
        return Err(encoding::too_large(MAX_STATEMENT));
    }
    let sql = body.join();
    match statement::analyse(&sql, true)? {
        Statement::Query { format } => {
            Ok(Task::Query { sql: sql.to_vec(), format: output_format(format, named_format) })
        }
        Statement::Insert(_) => Err(QueryError::new(62, "SYNTAX_ERROR", "Max query size exceeded before the data")),
    }
}

fn output_format(in_statement: Option<String>, named: Option<&str>) -> String {
    in_statement.unwrap_or_else(|| named.unwrap_or("TabSeparated").to_owned())
}

/// What a task gave, and the format of its answer (empty for inserts, which answer nothing).
type Executed = Result<(Outcome, String), QueryError>;

/// Runs the task on a session's connection. Settings and database of the request hold for the request only, so they
/// are put back; the second result says whether that worked.
fn in_session(
    connection: &mut Connection,
    parameters: &Parameters,
    read_only: bool,
    task: Task,
) -> (Executed, Result<(), QueryError>) {
    // The engine's own read-only mode cannot be left again, so its parser's verdict takes that place.
    if read_only && !leaves_no_trace(connection, &task) {
        let error = QueryError::new(164, "READONLY", "Cannot execute query in readonly mode: use POST to change data");
        return (Err(error), Ok(()));
    }
    let restore = match Restore::remember(connection, parameters) {
        Ok(restore) => restore,
        Err(error) => return (Err(error), Ok(())),
    };
    let executed = settings::apply(connection, parameters, false).and_then(|()| execute(connection, parameters, task));
    let restored = restore.apply(connection);
    (executed, restored)
}

fn leaves_no_trace(connection: &mut Connection, task: &Task) -> bool {
    match task {
        Task::Insert { .. } => false,
        Task::Query { sql, .. } => {
            // What changes the session alone is allowed; a text that does not parse will give its own error.
            statement::first_keyword(sql).is_some_and(|keyword| keyword != "INSERT")
                || connection.is_read_only(sql).unwrap_or(true)
        }
    }
}

fn execute(connection: &mut Connection, parameters: &Parameters, task: Task) -> Executed {
    match task {
        Task::Query { sql, format } => {
            let outcome = connection.query(&sql, &format, &parameters.bindings)?;
            Ok((outcome, format))
        }
        Task::Insert { sql, format, data } => {
            let mut insert = connection.insert(&sql, &format, &parameters.bindings)?;
            match data {
                Data::Plain(mut chunks) => {
                    while let Some(piece) = chunks.pop() {
                        insert.append(&piece)?;
                    }
                }
                Data::Compressed(blocks) => {
                    let mut scratch = Vec::new();
                    for block in blocks {
                        insert.append(block.decode(&mut scratch)?)?;
                    }
                }
            }
            let outcome = insert.finish()?;
            Ok((outcome, String::new()))
        }
    }
}
