//! What a child tells its parent on standard output, one line: that it is ready, or why it gives up.

/// The environment variable in which the parent passes the nonce. Not on the command line, which every user can read.
pub(super) const NONCE_VARIABLE: &str = "CLICKHOUSE_CHILD_NONCE";

const READY: &str = "clickhouse-child ready ";
const FAILED: &str = "clickhouse-child failed ";

/// One line of the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// The child answers on `port`.
    Ready { port: u16, nonce: String },
    /// The child exits; trying again without a change is of no use right now.
    Failed { reason: String },
}

impl Message {
    /// The line, without its end.
    pub(super) fn line(&self) -> String {
        match self {
            Self::Ready { port, nonce } => format!("{READY}{port} {nonce}"),
            Self::Failed { reason } => format!("{FAILED}{}", reason.replace('\n', " ")),
        }
    }

    /// Reads a line; None for anything else that the child or the library prints.
    pub(super) fn parse(line: &str) -> Option<Self> {
        if let Some(rest) = line.strip_prefix(READY) {
            let (port, nonce) = rest.split_once(' ')?;
            return Some(Self::Ready { port: port.parse().ok()?, nonce: nonce.to_owned() });
        }
        line.strip_prefix(FAILED).map(|reason| Self::Failed { reason: reason.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_pipe() {
        for message in [
            Message::Ready { port: 8123, nonce: "abc".to_owned() },
            Message::Failed { reason: "no library at x y".to_owned() },
        ] {
            assert_eq!(Message::parse(&message.line()), Some(message));
        }
        assert_eq!(Message::parse("<jemalloc>: something"), None);
    }
}
