//! TLS: a certificate authority, a server in front of the fake, and what a client does about wrong certificates.
//!
//! The server runs on a tokio thread of its own; the client in a child process, which finds the authority to trust in
//! SSL_CERT_FILE. The trap: "it does not work with a wrong certificate" proves nothing unless the same set-up works
//! with the right one, and unless nothing was sent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hyperion_vault_tests::kms::{Credentials, FakeKms, Op};
use hyperion_vault_tests::random_text;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::child::Launch;

/// An authority made for one test.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        // Two of one name would be taken for each other, up to the signature.
        params.distinguished_name.push(DnType::CommonName, random_text(12));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Its own certificate.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for a server of this name, and its key.
    fn server(&self, name: &str) -> (CertificateDer<'static>, PrivatePkcs8KeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.0).unwrap();
        (certificate.der().clone(), PrivatePkcs8KeyDer::from(key.serialize_der()))
    }
}

/// Ends TLS and passes on to the fake; ends when dropped.
struct Front {
    port: u16,
    /// Handshakes that were finished.
    shaken: Arc<AtomicU64>,
    _runtime: Runtime,
}

impl Front {
    fn start(kms: &FakeKms, authority: &Authority, name: &str) -> Self {
        let (certificate, key) = authority.server(name);
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key.into())
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shaken = Arc::new(AtomicU64::new(0));
        let behind = SocketAddr::from(([127, 0, 0, 1], kms.port()));
        runtime.spawn({
            let shaken = Arc::clone(&shaken);
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let (acceptor, shaken) = (acceptor.clone(), Arc::clone(&shaken));
                    tokio::spawn(async move {
                        let Ok(mut client) = acceptor.accept(client).await else { return };
                        // Read by the test after the call that caused it has ended.
                        shaken.fetch_add(1, Ordering::SeqCst);
                        let Ok(mut server) = TcpStream::connect(behind).await else { return };
                        // Whoever breaks off ends both.
                        drop(copy_bidirectional(&mut client, &mut server).await);
                    });
                }
            }
        });
        Self { port, shaken, _runtime: runtime }
    }
}

#[test]
fn calls_go_over_tls_to_a_server_whose_certificate_is_trusted() {
    let kms = FakeKms::start();
    let authority = Authority::new();
    let front = Front::start(&kms, &authority, "localhost");
    let endpoint = format!("https://localhost:{}", front.port);
    let mut child = Launch::new(&kms.key_arn())
        .endpoint(&endpoint)
        .credentials(&Credentials::example())
        .trusting(&authority.pem())
        .start();
    child.ask("generate").ok();
    child.ask("describe").ok();
    child.ask("describe").ok();
    assert_eq!((kms.calls(Op::GenerateDataKey), kms.calls(Op::DescribeKey)), (1, 2));
    // The connection is used again: a handshake costs more than the call.
    assert_eq!(front.shaken.load(Ordering::SeqCst), 1);
}

#[test]
fn nothing_is_sent_to_a_server_whose_certificate_is_not_trusted_or_for_another_name() {
    let kms = FakeKms::start();
    let (ours, theirs) = (Authority::new(), Authority::new());
    for (authority, name, said) in
        [(&theirs, "localhost", "UnknownIssuer"), (&ours, "kms.example.com", "not valid for name")]
    {
        let front = Front::start(&kms, authority, name);
        let mut child = Launch::new(&kms.key_arn())
            .endpoint(&format!("https://localhost:{}", front.port))
            .credentials(&Credentials::example())
            .trusting(&ours.pem())
            .start();
        for op in ["generate", "describe"] {
            let error = child.ask(op).err("unreachable");
            // An operator has to find out that it is the certificate, and not the network.
            assert!(error.detail.contains("certificate") && error.detail.contains(said), "{error:?}");
        }
        assert_eq!(front.shaken.load(Ordering::SeqCst), 0, "{name}: the handshake was finished");
    }
    assert_eq!(kms.counters().connections, 0);
}
