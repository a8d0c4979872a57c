//! TLS to ClickHouse: a server whose certificate comes from an authority of the operator's own.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    path::Path,
    sync::mpsc,
    thread,
    time::Duration,
};

use ingestion_engine::clickhouse::{Client, ClientError, Compression, Kind, Settings};
use native_tls::{Identity, TlsAcceptor};
use openssl::{
    asn1::Asn1Time,
    bn::BigNum,
    hash::MessageDigest,
    pkey::PKey,
    rsa::Rsa,
    x509::{
        X509, X509NameBuilder,
        extension::{BasicConstraints, SubjectAlternativeName},
    },
};

/// A certificate for 127.0.0.1 that is its own authority, and its key, in PEM.
fn certificate() -> (Vec<u8>, Vec<u8>) {
    let key = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
    let mut name = X509NameBuilder::new().unwrap();
    name.append_entry_by_text("CN", "test authority").unwrap();
    let name = name.build();
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    builder.set_serial_number(&BigNum::from_u32(1).unwrap().to_asn1_integer().unwrap()).unwrap();
    builder.set_subject_name(&name).unwrap();
    builder.set_issuer_name(&name).unwrap();
    builder.set_not_before(&Asn1Time::from_unix(0).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::days_from_now(2).unwrap()).unwrap();
    builder.set_pubkey(&key).unwrap();
    builder.append_extension(BasicConstraints::new().ca().build().unwrap()).unwrap();
    let host = SubjectAlternativeName::new().ip("127.0.0.1").build(&builder.x509v3_context(None, None)).unwrap();
    builder.append_extension(host).unwrap();
    builder.sign(&key, MessageDigest::sha256()).unwrap();
    (builder.build().to_pem().unwrap(), key.private_key_to_pem_pkcs8().unwrap())
}

/// A TLS server that answers every request with 200 and hands over its head. Returns its port.
fn serve(certificate: &[u8], key: &[u8], heads: mpsc::Sender<String>) -> u16 {
    let acceptor = TlsAcceptor::new(Identity::from_pkcs8(certificate, key).unwrap()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for tcp in listener.incoming() {
            // A client that does not trust us ends the handshake.
            let Ok(mut stream) = acceptor.accept(tcp.unwrap()) else { continue };
            let mut reader = BufReader::new(&mut stream);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap() > 0 {}
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
            reader.read_exact(&mut vec![0; length.parse().unwrap()]).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
            heads.send(head).unwrap();
        }
    });
    port
}

fn settings(url: &str, ca_file: Option<&Path>) -> Settings {
    Settings {
        url: url.to_owned(),
        user: "engine".into(),
        password: "pass word".into(),
        database: "o".into(),
        ca_file: ca_file.map(Path::to_owned),
        compression: Compression::None,
        insert_timeout: Duration::from_mins(1),
    }
}

#[tokio::test]
async fn an_authority_of_ones_own_is_trusted_when_it_is_named_and_only_then() {
    let home = tempfile::tempdir().unwrap();
    let (certificate, key) = certificate();
    let ca_file = home.path().join("ca.pem");
    fs::write(&ca_file, &certificate).unwrap();
    let (heads, received) = mpsc::channel();
    let url = format!("https://127.0.0.1:{}", serve(&certificate, &key, heads));

    let stranger = Client::new(&settings(&url, None)).unwrap().ping().await.unwrap_err();
    assert_eq!(*stranger.kind(), Kind::Infrastructure);
    assert!(stranger.to_string().contains("certificate verify failed"), "{stranger}");

    Client::new(&settings(&url, Some(&ca_file))).unwrap().ping().await.unwrap();
    let head = received.recv().unwrap().to_lowercase();
    assert!(head.contains("x-clickhouse-user: engine") && head.contains("x-clickhouse-key: pass word"), "{head}");
}

#[test]
fn what_cannot_work_is_refused_before_anything_connects() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("ca.pem");
    let refused = |url, ca: Option<&Path>| Client::new(&settings(url, ca)).err().unwrap();
    assert!(matches!(refused("localhost:8123", None), ClientError::Url { .. }));
    assert!(matches!(refused("https://h", Some(&file)), ClientError::ReadCa { .. }));
    fs::write(&file, "not a certificate").unwrap();
    assert!(matches!(refused("https://h", Some(&file)), ClientError::Tls(_)));
    assert!(!format!("{:?}", settings("http://h", None)).contains("pass"));
}
