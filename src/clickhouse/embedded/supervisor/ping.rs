//! Asks a child whether it lives, and whether it is the one that was started.

use std::{io, net::Ipv4Addr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::super::facade::NONCE_HEADER;

/// More than any answer to `/ping`; a stranger on the port may send anything.
const MAX_ANSWER: u64 = 4096;

/// Why a ping failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum PingError {
    #[error("no connection: {0}")]
    Connection(#[source] io::Error),
    #[error("no answer in time")]
    TimeOut,
    #[error("another process answers on the port")]
    Stranger,
}

/// Asks once.
pub(super) async fn ping(port: u16, nonce: &str, patience: Duration) -> Result<(), PingError> {
    let answer = tokio::time::timeout(patience, exchange(port))
        .await
        .map_err(|_| PingError::TimeOut)?
        .map_err(PingError::Connection)?;
    let head = answer.split("\r\n\r\n").next().unwrap_or_default();
    let mut lines = head.lines();
    let fine = lines.next().is_some_and(|status| status.starts_with("HTTP/1.1 200 "));
    let known = lines.any(|line| {
        line.split_once(':')
            .is_some_and(|(name, value)| name.eq_ignore_ascii_case(NONCE_HEADER) && value.trim() == nonce)
    });
    if fine && known { Ok(()) } else { Err(PingError::Stranger) }
}

async fn exchange(port: u16) -> io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    stream.write_all(b"GET /ping HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn answer_once(answer: &'static str) -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        port
    }

    #[tokio::test]
    async fn only_the_child_with_the_nonce_counts() {
        let patience = Duration::from_secs(30);
        let port = answer_once("HTTP/1.1 200 OK\r\nx-ingestion-nonce: abc\r\n\r\nOk.\n").await;
        ping(port, "abc", patience).await.unwrap();
        let port = answer_once("HTTP/1.1 200 OK\r\nx-ingestion-nonce: abd\r\n\r\nOk.\n").await;
        assert!(matches!(ping(port, "abc", patience).await, Err(PingError::Stranger)));
        let port = answer_once("HTTP/1.1 200 OK\r\n\r\nx-ingestion-nonce: abc\n").await;
        assert!(matches!(ping(port, "abc", patience).await, Err(PingError::Stranger)));
    }
}
