//! Sessions: a connection that stays, with its temporary tables and settings, under a name that the client chose.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{
    super::engine::{Connection, Engine, QueryError},
    params::SessionRequest,
};

/// Each session holds an open connection; a client library opens one or a few.
const MAX_SESSIONS: usize = 128;

struct Session {
    /// None while a request has it.
    connection: Option<Connection>,
    timeout: Duration,
    last_used: Instant,
}

impl Session {
    fn expired(&self, now: Instant) -> bool {
        self.connection.is_some() && now.duration_since(self.last_used) >= self.timeout
    }
}

/// All sessions. Cheap to clone; clones share state.
#[derive(Clone, Default)]
pub(super) struct Sessions {
    sessions: Arc<Mutex<HashMap<String, Session>>>,
}

impl Sessions {
    /// Takes the session for one request: nobody else has it meanwhile.
    ///
    /// # Errors
    /// `SESSION_IS_LOCKED` while another request has it, `SESSION_NOT_FOUND` when it must exist and does not,
    /// `TOO_MANY_SIMULTANEOUS_QUERIES` when every one of the 128 sessions is busy.
    pub(super) fn check_out(&self, engine: &Engine, request: &SessionRequest) -> Result<CheckedOut, QueryError> {
        self.remove_expired();
        let mut sessions = self.sessions.lock();
        let connection = match sessions.get_mut(&request.id) {
            Some(session) => {
                session.timeout = request.timeout;
                session.connection.take().ok_or_else(|| {
                    QueryError::new(
                        373,
                        "SESSION_IS_LOCKED",
                        format_args!("Session {} is locked by a concurrent client", request.id),
                    )
                })?
            }
            None if request.must_exist => {
                return Err(QueryError::new(
                    372,
                    "SESSION_NOT_FOUND",
                    format_args!("Session {} not found", request.id),
                ));
            }
            None => {
                if sessions.len() >= MAX_SESSIONS {
                    evict_oldest(&mut sessions)?;
                }
                let connection = engine.connect()?;
                let session = Session { connection: None, timeout: request.timeout, last_used: Instant::now() };
                sessions.insert(request.id.clone(), session);
                connection
            }
        };
        Ok(CheckedOut { sessions: self.clone(), id: request.id.clone(), connection: Some(connection) })
    }

    /// Closes the sessions that nobody used for their time-out.
    pub(super) fn remove_expired(&self) {
        let now = Instant::now();
        let expired: Vec<Session> = {
            let mut sessions = self.sessions.lock();
            sessions.extract_if(|_, session| session.expired(now)).map(|(_, session)| session).collect()
        };
        // Closing a connection is the engine's work: not under the lock.
        drop(expired);
    }

    /// Closes all sessions.
    pub(super) fn clear(&self) {
        let all = std::mem::take(&mut *self.sessions.lock());
        drop(all);
    }
}

fn evict_oldest(sessions: &mut HashMap<String, Session>) -> Result<(), QueryError> {
    let oldest = sessions
        .iter()
        .filter(|(_, session)| session.connection.is_some())
        .min_by_key(|(_, session)| session.last_used)
        .map(|(id, _)| id.clone());
    let Some(oldest) = oldest else {
        return Err(QueryError::new(
            202,
            "TOO_MANY_SIMULTANEOUS_QUERIES",
            format_args!("all {MAX_SESSIONS} sessions are busy"),
        ));
    };
    sessions.remove(&oldest);
    Ok(())
}

/// A session's connection on loan; it goes back when this is dropped.
pub(super) struct CheckedOut {
    sessions: Sessions,
    id: String,
    connection: Option<Connection>,
}

impl CheckedOut {
    /// The connection.
    pub(super) fn connection(&mut self) -> Result<&mut Connection, QueryError> {
        self.connection
            .as_mut()
            .ok_or_else(|| QueryError::new(372, "SESSION_NOT_FOUND", "the session's connection is gone"))
    }

    /// Ends the session: its connection is not fit for another request.
    pub(super) fn discard(mut self) {
        self.connection = None;
    }
}

impl Drop for CheckedOut {
    fn drop(&mut self) {
        let connection = self.connection.take();
        let mut sessions = self.sessions.sessions.lock();
        if connection.is_none() {
            sessions.remove(&self.id);
        } else if let Some(session) = sessions.get_mut(&self.id) {
            session.connection = connection;
            session.last_used = Instant::now();
        }
    }
}
