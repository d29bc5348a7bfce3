//! Handshakes with openssl's server, in every dialect that it can be told to speak.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Duration,
};

use kube::{Client, config::AuthInfo};

use super::*;
use crate::{
    api::client::{
        self,
        tls::{
            authority::Authority,
            tests::{Folder, Party},
        },
    },
    serve::server::tests::own_network,
};

/// `openssl s_server`, which answers every request with a page about itself.
struct Server {
    process: Child,
    port: u16,
}

impl Server {
    fn start(folder: &Folder, party: &Party, arguments: &str) -> Self {
        Self::raw(folder, party, &format!("-www {arguments}"))
    }

    /// One that says nothing by itself.
    fn raw(folder: &Folder, party: &Party, arguments: &str) -> Self {
        // Below the ports that the kernel hands out: nobody gets it by chance between now and the server's start.
        let first = std::process::id() % 12_000;
        let mut ports = (first..first + 12_000).map(|number| (20_000 + number % 12_000) as u16);
        let port = ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("a port");
        let mut command = Command::new("openssl");
        // A ticket after the handshake would carry the acknowledgement; kube-apiserver sends none then.
        command.args(["s_server", "-num_tickets", "0", "-accept", &format!("127.0.0.1:{port}")]);
        command.arg("-key").arg(&party.key).arg("-cert").arg(&party.certificate);
        command.args(arguments.split(' ').filter(|part| !part.is_empty())).current_dir(&folder.0);
        // It would end with its input.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().expect("openssl starts");
        let mut lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        let ready = lines.by_ref().map_while(Result::ok).any(|line| line.starts_with("ACCEPT"));
        assert!(ready, "openssl s_server {arguments} does not begin");
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self { process, port }
    }

    fn config(&self) -> Config {
        Config::new(format!("https://127.0.0.1:{}", self.port).parse().expect("a URL"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn connected(config: &Config, authority: Option<&Party>) -> anyhow::Result<Client> {
    let authority = authority.map(|party| Authority::of_text(&party.text())).transpose()?;
    Ok(client::client(config, authority, Liveness::default())?.0)
}

/// The page, or why there is none.
async fn ask(config: &Config, authority: Option<&Party>) -> Result<String, String> {
    let client = connected(config, authority).map_err(|error| format!("{error:#}"))?;
    let request = Request::get("/").body(Vec::new()).expect("a request");
    client.request_text(request).await.map_err(|error| crate::api::watch::chain(&error))
}

const SERVER: &str = "subjectAltName=DNS:kubernetes,IP:127.0.0.1";

#[tokio::test]
async fn every_key_version_curve_and_suite_that_go_accepts() {
    let folder = Folder::new("dialects");
    for (key, dialects) in [
        ("rsa:2048", &["-tls1_3", "-tls1_2", "-tls1_2 -cipher ECDHE-RSA-AES128-GCM-SHA256"][..]),
        (
            "rsa:3072",
            &["-tls1_2 -cipher ECDHE-RSA-AES256-GCM-SHA384", "-tls1_2 -cipher ECDHE-RSA-CHACHA20-POLY1305"],
        ),
        ("rsa:8192", &["-tls1_3", "-tls1_2"]),
        (
            "ec:P-256",
            &[
                "-tls1_3 -groups X25519",
                "-tls1_3 -groups P-256",
                "-tls1_3 -groups P-384",
                "-tls1_3 -groups P-521",
                "-tls1_2 -groups P-384",
                "-tls1_2 -groups P-521",
                "-tls1_2 -groups X25519",
                "-tls1_3 -ciphersuites TLS_CHACHA20_POLY1305_SHA256",
                "-tls1_3 -ciphersuites TLS_AES_128_GCM_SHA256",
            ],
        ),
        (
            "ec:P-384",
            &[
                "-tls1_3",
                "-tls1_2 -cipher ECDHE-ECDSA-AES128-GCM-SHA256",
                "-tls1_2 -cipher ECDHE-ECDSA-CHACHA20-POLY1305",
            ],
        ),
        ("ec:P-521", &["-tls1_3", "-tls1_2", "-tls1_2 -groups P-521"]),
        ("ED25519", &["-tls1_3", "-tls1_2"]),
    ] {
        let party = folder.own("server", key, SERVER, "");
        for dialect in dialects {
            let server = Server::start(&folder, &party, dialect);
            let page = ask(&server.config(), Some(&party)).await;
            assert!(page.as_ref().is_ok_and(|page| page.contains("s_server")), "{key} {dialect}: {page:?}");
        }
    }
}

#[tokio::test]
async fn what_cannot_be_spoken_is_explained() {
    let folder = Folder::new("refused");
    let rsa = folder.own("server", "rsa:2048", SERVER, "");
    let nothing_in_common = "no cipher suite, curve or signature algorithm in common";
    for (dialect, reason) in [
        ("-tls1_2 -cipher ECDHE-RSA-AES128-SHA", nothing_in_common),
        ("-tls1_2 -cipher AES128-GCM-SHA256", nothing_in_common),
        ("-tls1_1 -cipher DEFAULT@SECLEVEL=0", "speaks no TLS version that is accepted here"),
        ("-tls1 -cipher DEFAULT@SECLEVEL=0", "speaks no TLS version that is accepted here"),
    ] {
        let server = Server::start(&folder, &rsa, dialect);
        let said = ask(&server.config(), Some(&rsa)).await.expect_err(dialect);
        assert!(said.contains(reason), "{dialect}: {said}");
    }
    let small = folder.own("small", "rsa:1024", SERVER, "");
    let server = Server::start(&folder, &small, "-tls1_3 -cipher DEFAULT@SECLEVEL=0");
    let said = ask(&server.config(), Some(&small)).await.expect_err("too small");
    assert!(said.contains("RSA key has 1024 bits"), "{said}");

    let stranger = folder.own("stranger", "ec:P-256", SERVER, "");
    let server = Server::start(&folder, &rsa, "");
    let said = ask(&server.config(), Some(&stranger)).await.expect_err("unknown");
    assert!(said.contains("signed by an authority that is not known here"), "{said}");

    let plain = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = plain.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        for (kind, stream) in plain.incoming().enumerate() {
            let Ok(mut stream) = stream else { return };
            drop(stream.read(&mut [0; 4096]));
            if kind == 0 {
                drop(stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request\n"));
            }
        }
    });
    let config = Config::new(format!("https://127.0.0.1:{port}").parse().expect("a URL"));
    let said = ask(&config, Some(&rsa)).await.expect_err("no TLS");
    assert!(said.contains("does not answer with TLS"), "{said}");
    let said = ask(&config, Some(&rsa)).await.expect_err("closed");
    assert!(said.contains("closed during the TLS handshake"), "{said}");
}

#[tokio::test]
async fn the_name_to_ask_for_and_the_wish_not_to_look() {
    let folder = Folder::new("name");
    let party = folder.own("server", "ec:P-256", "subjectAltName=DNS:kubernetes", "");
    let server = Server::start(&folder, &party, "");
    let mut config = server.config();
    let said = ask(&config, Some(&party)).await.expect_err("another name");
    assert!(said.contains("it is for kubernetes, not for 127.0.0.1"), "{said}");
    config.tls_server_name = Some("kubernetes".to_owned());
    ask(&config, Some(&party)).await.expect("the right name");
    let mut config = server.config();
    config.accept_invalid_certs = true;
    ask(&config, None).await.expect("nobody looks");
}

#[tokio::test]
async fn client_certificates_in_every_form() {
    let folder = Folder::new("clients");
    let authority = folder.own("authority", "ec:P-256", "basicConstraints=critical,CA:TRUE", "");
    let party = folder.signed(&authority, "server", "ec:P-384", SERVER, "");
    let server = Server::start(&folder, &party, "-Verify 1 -verify_return_error -CAfile authority.crt");
    let as_client = |certificate: &std::path::Path, key: &std::path::Path| {
        let mut config = server.config();
        config.auth_info = AuthInfo {
            client_certificate: Some(certificate.display().to_string()),
            client_key: Some(key.display().to_string()),
            ..AuthInfo::default()
        };
        config
    };
    for kind in ["rsa:2048", "rsa:3072", "ec:P-256", "ec:P-384", "ec:P-521", "ED25519"] {
        let client = folder.signed(&authority, "client", kind, "extendedKeyUsage=clientAuth", "");
        let pkcs8 = client.key.clone();
        let mut forms = vec![pkcs8.clone()];
        if kind != "ED25519" {
            // PKCS#1 or SEC1, as older versions of openssl write them.
            let traditional = folder.0.join("traditional.key");
            folder.openssl(&format!(
                "pkey -in {} -traditional -out {}",
                pkcs8.display(),
                traditional.display()
            ));
            let text = fs::read_to_string(&traditional).expect("a key");
            assert!(
                text.contains("BEGIN RSA PRIVATE KEY") || text.contains("BEGIN EC PRIVATE KEY"),
                "{text}"
            );
            // With what `openssl ecparam -genkey` writes before it, words around it, and line ends of Windows.
            let noise = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
            let with_noise = folder.0.join("noise.key");
            fs::write(&with_noise, format!("a key\n{noise}{text}the end").replace('\n', "\r\n"))
                .expect("a file");
            forms.extend([traditional, with_noise]);
        }
        for key in forms {
            let page = ask(&as_client(&client.certificate, &key), Some(&authority)).await;
            assert!(page.is_ok(), "{kind} {}: {page:?}", key.display());
        }
    }
    // Version 1 has no extensions.
    let key = folder.key("ec:P-256");
    folder.openssl(&format!("req -new -config plain.cnf -subj /CN=old -key {} -out request", key.display()));
    folder.openssl("x509 -req -in request -days 30 -CA authority.crt -CAkey ec-P-256.key -out old.crt");
    ask(&as_client(&folder.0.join("old.crt"), &key), Some(&authority)).await.expect("version 1");

    let stranger = folder.own("stranger", "ec:P-521", "extendedKeyUsage=clientAuth", "");
    let said = ask(&as_client(&stranger.certificate, &stranger.key), Some(&authority)).await;
    let said = said.expect_err("nobody knows it");
    assert!(said.contains("does not accept this client's certificate"), "{said}");
    let said = ask(&server.config(), Some(&authority)).await.expect_err("no certificate");
    assert!(said.contains("does not accept this client's certificate"), "{said}");

    let wrong = as_client(&stranger.certificate, &folder.key("ec:P-384"));
    let said = ask(&wrong, Some(&authority)).await.expect_err("another key");
    assert!(said.contains("does not belong to the client certificate (CN=stranger)"), "{said}");
    folder.openssl(&format!(
        "pkey -in {} -aes256 -passout pass:secret -out locked.key",
        stranger.key.display()
    ));
    let said = ask(&as_client(&stranger.certificate, &folder.0.join("locked.key")), Some(&authority)).await;
    assert!(said.expect_err("locked").contains("the client key is encrypted"));
}

/// Acknowledgements of the server's that carry nothing else never arrive: whoever waits for one waits for ever.
fn drop_bare_acknowledgements(port: u16) {
    let rules = format!(
        "add table ip t; add chain ip t in {{ type filter hook input priority 0; }}; \
         add rule ip t in tcp sport {port} tcp flags == ack meta length <= 80 drop"
    );
    let status = Command::new("nft").arg(rules).status();
    assert!(status.is_ok_and(|status| status.success()), "nft takes the rules");
}

#[tokio::test]
async fn the_first_request_of_a_connection_does_not_wait_for_an_acknowledgement() {
    own_network();
    let folder = Folder::new("at-once");
    let party = folder.own("server", "ec:P-256", SERVER, "");
    let server = Server::start(&folder, &party, "");
    drop_bare_acknowledgements(server.port);
    // A new client has no connection yet.
    let client = connected(&server.config(), Some(&party)).expect("a client");
    let request = Request::get("/").body(Vec::new()).expect("a request");
    let answer = tokio::time::timeout(Duration::from_secs(60), client.request_text(request)).await;
    assert!(answer.expect("it was sent").expect("a page").contains("s_server"));
}

/// One that is used up does no harm: what a connection asks for by itself ends it within 45 seconds.
#[test]
fn a_dead_connection_is_found_within_45_seconds() {
    let Liveness { idle, interval, unacknowledged, ping, pong, .. } = Liveness::default();
    // The kernel looks when it asks: the first time after the limit ends the connection.
    let mut asked = idle;
    while asked < unacknowledged {
        asked += interval;
    }
    let limit = Duration::from_secs(45);
    assert!(asked <= limit && unacknowledged <= limit && ping + pong <= limit);
}

/// Its kernel acknowledges everything, as a proxy does in front of a server that is gone.
#[tokio::test]
async fn an_http2_server_that_says_nothing_is_found() {
    let folder = Folder::new("silent");
    let party = folder.own("server", "ec:P-256", SERVER, "");
    let server = Server::raw(&folder, &party, "-alpn h2");
    let second = Duration::from_secs(1);
    let liveness = Liveness { ping: second, pong: second, ..Liveness::default() };
    let authority = Authority::of_text(&party.text()).expect("an authority");
    let client = client::client(&server.config(), Some(authority), liveness).expect("a client").0;
    let request = Request::get("/").body(Vec::new()).expect("a request");
    let answer = tokio::time::timeout(Duration::from_secs(60), client.request_text(request)).await;
    let said = crate::api::watch::chain(&answer.expect("it is found").expect_err("nothing was said"));
    assert!(said.contains("keep-alive"), "{said}");
}

#[tokio::test]
async fn the_newest_curve_is_spoken() {
    use rustls::crypto::aws_lc_rs::{default_provider, kx_group::X25519MLKEM768};
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
    let folder = Folder::new("mlkem");
    let party = folder.own("server", "ec:P-256", SERVER, "");
    let key = pem::parse(fs::read(&party.key).expect("a key")).expect("PEM").into_contents();
    let certificate = pem::parse(party.text()).expect("PEM").into_contents();
    let mut provider = default_provider();
    provider.kx_groups = vec![X25519MLKEM768];
    let config = rustls::ServerConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from(certificate)],
            PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key)),
        )
        .expect("a server");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut connection = rustls::ServerConnection::new(config.into()).expect("a connection");
        let mut tls = rustls::Stream::new(&mut connection, &mut stream);
        assert!(tls.read(&mut [0; 4096]).expect("a request") > 0);
        tls.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").expect("sent");
    });
    let config = Config::new(format!("https://127.0.0.1:{port}").parse().expect("a URL"));
    assert_eq!(ask(&config, Some(&party)).await.expect("an answer"), "ok");
}
