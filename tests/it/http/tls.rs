//! Hosts that cannot prove who they are: nothing is sent to any of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use reqwest::StatusCode;
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::http::hostile::{kind, send, tenant};
use crate::kit::oracle::Watch;
use crate::kit::server::{Server, Setup};

/// Who gives certificates away.
struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut of = CertificateParams::default();
        of.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        of.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = of.self_signed(&key).expect("signed");
        Self { certificate, issuer: Issuer::new(of, key) }
    }

    fn sign(&self, of: &CertificateParams) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let certificate = of.signed_by(&key, &self.issuer).expect("signed");
        Identity { chain: vec![certificate.der().clone()], key }
    }
}

/// What a server shows: its certificate, those that vouch for it, and its key.
struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: KeyPair,
}

/// A certificate for these names as it has to be.
fn of(names: &[&str]) -> CertificateParams {
    CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).expect("names")
}

/// A server that shows this, answers whoever goes on, and counts them.
async fn showing(identity: Identity) -> (u16, Arc<AtomicUsize>) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::try_from(identity.key.serialize_der()).expect("a key");
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(identity.chain, key)
        .expect("a certificate and its key");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, counted) = (acceptor.clone(), counted.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                if stream.read(&mut [0; 4_096]).await.is_ok_and(|read| read > 0) {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
                let _ = stream.shutdown().await;
            });
        }
    });
    (port, asked)
}

/// A server that answers a hello with these bytes.
async fn saying(bytes: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4_096]).await;
                let _ = stream.write_all(bytes).await;
            });
        }
    });
    port
}

/// A hello of TLS 1.0 or 1.1 (RFC 2246 and 4346, 7.4.1.3), with a cipher that both have.
const TLS_1_0: &[u8] = b"\x16\x03\x01\x00\x2a\x02\x00\x00\x26\x03\x01\
    01234567890123456789012345678901\x00\xc0\x13\x00";
const TLS_1_1: &[u8] = b"\x16\x03\x02\x00\x2a\x02\x00\x00\x26\x03\x02\
    01234567890123456789012345678901\x00\xc0\x13\x00";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_sent_to_a_host_that_cannot_prove_its_name() {
    let (ours, another) = (Authority::new("ours"), Authority::new("another"));
    let right = || of(&["localhost"]);
    let self_signed = {
        let key = KeyPair::generate().expect("a key");
        Identity { chain: vec![right().self_signed(&key).expect("signed").der().clone()], key }
    };
    let mut expired = right();
    (expired.not_before, expired.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
    let mut early = right();
    (early.not_before, early.not_after) = (date_time_ymd(2100, 1, 1), date_time_ymd(2101, 1, 1));
    let mut nameless = of(&[]);
    nameless.distinguished_name.push(DnType::CommonName, "localhost");
    let mut for_clients = right();
    for_clients.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    // Somebody who has a certificate of his own, and vouches with it for others.
    let upstart = {
        let mut own = of(&["upstart.example.net"]);
        own.is_ca = IsCa::ExplicitNoCa;
        let key = KeyPair::generate().expect("a key");
        let certificate = own.signed_by(&key, &ours.issuer).expect("signed");
        let mut vouched = Authority { certificate: certificate.clone(), issuer: Issuer::new(own, key) }.sign(&right());
        vouched.chain.push(certificate.der().clone());
        vouched
    };
    let mut cases = Vec::new();
    for (what, identity) in [
        ("self-signed", self_signed),
        ("expired", ours.sign(&expired)),
        ("not valid yet", ours.sign(&early)),
        ("of another name", ours.sign(&of(&["other.example.net", "localhost.example.net", "xlocalhost"]))),
        ("of every name", ours.sign(&of(&["*"]))),
        ("of a name that is none of its names", ours.sign(&nameless)),
        ("of another authority", another.sign(&right())),
        ("of somebody who is no authority", upstart),
        ("for clients only", ours.sign(&for_clients)),
    ] {
        let (port, asked) = showing(identity).await;
        cases.push((what, port, asked));
    }
    let (good, asked) = showing(ours.sign(&right())).await;
    let old = [
        ("TLS 1.0", saying(TLS_1_0).await),
        ("TLS 1.1", saying(TLS_1_1).await),
        ("no TLS", saying(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await),
        ("an end at once", saying(b"").await),
    ];

    let ports = cases.iter().map(|(_, port, _)| *port).chain(old.iter().map(|(_, port)| *port)).chain([good]);
    let local: Vec<String> = ports.map(|port| format!("localhost:{port}")).collect();
    let data = TempDir::new().expect("a temporary folder");
    let roots = data.path().join("roots.pem");
    std::fs::write(&roots, ours.certificate.pem()).expect("written");
    let settings = format!("[egress]\nca_file = {:?}\n", roots.to_str().expect("text"));
    std::fs::write(data.path().join("chalet.toml"), settings).expect("written");
    let server = Server::start_on(Setup::sqlite().with("CHALET_EGRESS_LOCAL", &local.join(",")), Arc::new(data));
    let watch = Watch::begin(&server).await;
    let acme = tenant(&server, "acme", local).await;
    let url = |port: u16| format!("https://localhost:{port}/");
    let answer = async |port: u16| {
        let answers = send(&acme, vec![json!({ "url": url(port), "timeout_ms": 5_000 })]).await;
        answers.into_iter().next().expect("an answer")
    };

    assert_eq!(kind(&answer(good).await), "answered", "a host that proves its name is reached");
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    // Each of the others would answer a client that does not look.
    let careless = reqwest::Client::builder().danger_accept_invalid_certs(true).build().expect("a client");
    for (what, port, asked) in cases {
        let told = answer(port).await;
        let message = told["error"]["message"].as_str().unwrap_or_default();
        assert!(kind(&told) == "unavailable" && message.contains("certificate"), "{what}: {told}");
        assert_eq!(asked.load(Ordering::Relaxed), 0, "{what}: something was sent");
        let careless = careless.get(url(port)).send().await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert_eq!((careless.status(), asked.load(Ordering::Relaxed)), (StatusCode::OK, 1), "{what}");
    }
    for (what, port) in old {
        assert_eq!(kind(&answer(port).await), "unavailable", "{what}");
    }
    watch.end(&server).await;
}
