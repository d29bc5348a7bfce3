//! Certificates of every shape, made here and now with openssl, and what becomes of them.

use std::{fs, path::PathBuf, process::Command, sync::Arc};

use rustls::{
    client::danger::ServerCertVerifier as _,
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use super::{authority::Authority, curve, verifier::Verifier};

/// Where everything is made; gone when it is dropped.
pub(in super::super) struct Folder(pub(in super::super) PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// Somebody with a key and a certificate.
#[derive(Clone)]
pub(in super::super) struct Party {
    pub(in super::super) key: PathBuf,
    pub(in super::super) certificate: PathBuf,
}

impl Party {
    pub(in super::super) fn text(&self) -> Vec<u8> {
        fs::read(&self.certificate).expect("a certificate")
    }

    fn der(&self) -> CertificateDer<'static> {
        pem::parse(self.text()).expect("PEM").into_contents().into()
    }
}

const SERVER: &str = "subjectAltName=DNS:kubernetes,IP:127.0.0.1";
const AUTHORITY: &str =
    "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash";

impl Folder {
    pub(in super::super) fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("switchyard-tls-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join("plain.cnf"), "[req]\ndistinguished_name=dn\n[dn]\n").expect("a file");
        Self(folder)
    }

    pub(in super::super) fn openssl(&self, arguments: &str) {
        let mut command = Command::new("openssl");
        command.current_dir(&self.0).args(arguments.split(' ').filter(|part| !part.is_empty()));
        let output = command.output().expect("openssl runs");
        assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// `kind`: `rsa:<bits>`, `ec:<curve>` or another algorithm.
    pub(in super::super) fn key(&self, kind: &str) -> PathBuf {
        let path = self.0.join(format!("{}.key", kind.replace(':', "-")));
        if !path.exists() {
            let how = match kind.split_once(':') {
                // Many primes are as good here, and found much sooner.
                Some(("rsa", "8192")) => {
                    "RSA -pkeyopt rsa_keygen_bits:8192 -pkeyopt rsa_keygen_primes:4".to_owned()
                }
                Some(("rsa", bits)) => format!("RSA -pkeyopt rsa_keygen_bits:{bits}"),
                Some(("ec", curve)) => format!("EC -pkeyopt ec_paramgen_curve:{curve}"),
                _ => kind.to_owned(),
            };
            self.openssl(&format!("genpkey -algorithm {how} -out {}", path.display()));
        }
        path
    }

    /// One that signs itself; `how` are more arguments.
    pub(in super::super) fn own(&self, name: &str, key: &str, extensions: &str, how: &str) -> Party {
        let (key, certificate) = (self.key(key), self.0.join(format!("{name}.crt")));
        let extensions: String = extensions.lines().map(|line| format!(" -addext {line}")).collect();
        let (key_path, out) = (key.display(), certificate.display());
        self.openssl(&format!(
            "req -x509 -new -days 3650 -config plain.cnf -subj /CN={name} -key {key_path} -out {out} {extensions} {how}"
        ));
        Party { key, certificate }
    }

    /// One that `by` signs. The file is called `name`; the subject is what comes before a plus sign in it.
    pub(in super::super) fn signed(
        &self,
        by: &Party,
        name: &str,
        key: &str,
        extensions: &str,
        how: &str,
    ) -> Party {
        let (key, certificate) = (self.key(key), self.0.join(format!("{name}.crt")));
        let subject = name.split('+').next().unwrap_or_default();
        fs::write(self.0.join("extensions"), format!("{extensions}\n")).expect("a file");
        self.openssl(&format!(
            "req -new -config plain.cnf -subj /CN={subject} -key {} -out request",
            key.display()
        ));
        self.openssl(&format!(
            "x509 -req -in request -days 365 -extfile extensions -CA {} -CAkey {} -out {} {how}",
            by.certificate.display(),
            by.key.display(),
            certificate.display()
        ));
        Party { key, certificate }
    }
}

const DAY: i64 = 86_400;

/// What is said about a server that shows these, by whoever has this authority file, so many days from now.
fn verdict(authority: &[u8], shown: &[&Party], host: &str, days: i64) -> Result<(), String> {
    let authority = Authority::of_text(authority).map_err(|error| format!("{error:#}"))?;
    let verifier =
        Verifier::new(Some(Arc::new(authority)), curve::provider().signature_verification_algorithms);
    let chain: Vec<CertificateDer<'static>> = shown.iter().map(|party| party.der()).collect();
    let name = ServerName::try_from(host.to_owned()).expect("a name");
    let now = i64::try_from(UnixTime::now().as_secs()).expect("a time") + days * DAY;
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(u64::try_from(now).expect("a time")));
    verifier
        .verify_server_cert(&chain[0], &chain[1..], &name, &[], now)
        .map(drop)
        .map_err(|error| super::explain::words(&error).unwrap_or_else(|| error.to_string()))
}

#[track_caller]
fn accepted(authority: &Party, shown: &[&Party], host: &str) {
    assert_eq!(verdict(&authority.text(), shown, host, 0), Ok(()));
}

#[track_caller]
fn refused(authority: &Party, shown: &[&Party], host: &str, reason: &str) {
    let said = verdict(&authority.text(), shown, host, 0).expect_err("refused");
    assert!(said.contains(reason), "{said}");
}

#[test]
fn a_server_may_show_an_authoritys_certificate() {
    let folder = Folder::new("authority-shown");
    // As `openssl req -x509` makes it by itself: CA:TRUE, and nobody above it.
    let key = folder.key("ec:P-256");
    let certificate = folder.0.join("default.crt");
    folder.openssl(&format!(
        "req -x509 -new -days 30 -subj /CN=kubernetes -key {} -out {} -addext {SERVER}",
        key.display(),
        certificate.display()
    ));
    let own = Party { key, certificate };
    assert!(
        format!("{:?}", x509_parser::parse_x509_certificate(&own.der()).expect("read").1)
            .contains("ca: true")
    );
    accepted(&own, &[&own], "kubernetes");
    accepted(&own, &[&own], "127.0.0.1");
    refused(&own, &[&own], "other", "it is for kubernetes, 127.0.0.1, not for other");

    let root = folder.own("root", "ec:P-384", AUTHORITY, "");
    let shown =
        folder.signed(&root, "kubernetes", "ec:P-256", &format!("{SERVER}\nbasicConstraints=CA:TRUE"), "");
    accepted(&root, &[&shown], "kubernetes");
    refused(&own, &[&shown], "kubernetes", "authority that is not known here");
    // The authority file is the server's own certificate, whoever made it.
    let leaf = folder.signed(&root, "kubernetes+leaf", "ec:P-256", SERVER, "");
    accepted(&leaf, &[&leaf], "kubernetes");
    // Then it does not make others trustworthy.
    let other = folder.signed(&leaf, "other", "ec:P-256", SERVER, "");
    refused(&leaf, &[&other], "kubernetes", "is not an authority's (basicConstraints)");
}

#[test]
fn every_kind_of_key_and_signature() {
    let folder = Folder::new("keys");
    for kind in ["rsa:2048", "rsa:3072", "rsa:8192", "ec:P-256", "ec:P-384", "ec:P-521", "ED25519"] {
        let name = kind.replace(':', "-");
        let root = folder.own(&format!("root-{name}"), kind, AUTHORITY, "");
        let leaf = folder.signed(&root, &format!("leaf-{name}"), kind, SERVER, "");
        assert_eq!(verdict(&root.text(), &[&leaf], "kubernetes", 0), Ok(()), "{kind}");
    }
    for (kind, hash) in [
        ("rsa:2048", "-sha384"),
        ("rsa:2048", "-sha512"),
        ("ec:P-256", "-sha384"),
        ("ec:P-256", "-sha512"),
        ("ec:P-384", "-sha256"),
        ("ec:P-521", "-sha256"),
        ("ec:P-521", "-sha512"),
    ] {
        let root = folder.own("root", kind, AUTHORITY, hash);
        let leaf = folder.signed(&root, "leaf", "ec:P-256", SERVER, hash);
        assert_eq!(verdict(&root.text(), &[&leaf], "kubernetes", 0), Ok(()), "{kind} {hash}");
    }
    for hash in ["-sha256", "-sha384", "-sha512"] {
        let how = format!("{hash} -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:-1");
        let root = folder.own("root", "rsa:2048", AUTHORITY, &how);
        let leaf = folder.signed(&root, "leaf", "rsa:2048", SERVER, &how);
        assert_eq!(verdict(&root.text(), &[&leaf], "kubernetes", 0), Ok(()), "PSS {hash}");
    }
    let root = folder.own("root", "rsa:2048", AUTHORITY, "");
    let weak = folder.signed(&root, "weak", "rsa:2048", SERVER, "-sha1");
    refused(&root, &[&weak], "kubernetes", "1.2.840.113549.1.1.5 by a key of kind");
    let small = folder.own("small", "rsa:1024", AUTHORITY, "");
    let leaf = folder.signed(&small, "leaf", "rsa:2048", SERVER, "");
    refused(&small, &[&leaf], "kubernetes", "its RSA key has 1024 bits");
}

#[test]
fn the_way_to_an_authority() {
    let folder = Folder::new("ways");
    let (a, b) = (folder.own("a", "ec:P-256", AUTHORITY, ""), folder.own("b", "ec:P-384", AUTHORITY, ""));
    let by_a = folder.signed(&a, "between+a", "ec:P-521", AUTHORITY, "");
    let by_b = folder.signed(&b, "between+b", "ec:P-521", AUTHORITY, "");
    let leaf = folder.signed(&by_a, "leaf", "ec:P-256", SERVER, "");
    accepted(&a, &[&leaf, &by_a], "kubernetes");
    accepted(&b, &[&leaf, &by_a, &a, &by_b], "kubernetes");
    accepted(&by_a, &[&leaf], "kubernetes");
    refused(&a, &[&leaf], "kubernetes", "the server does not send a certificate in between");
    refused(&b, &[&leaf, &by_a, &a], "kubernetes", "not known here");

    let impostor = folder.own("a", "ec:P-384", AUTHORITY, "");
    let forged = folder.signed(&impostor, "forged", "ec:P-256", SERVER, "");
    let a = folder.own("a", "ec:P-256", AUTHORITY, "");
    refused(&a, &[&forged], "kubernetes", "a signature that the key of CN=a did not make");

    let narrow = folder.own("narrow", "ec:P-256", "basicConstraints=critical,CA:TRUE,pathlen:0", "");
    let below = folder.signed(&narrow, "below", "ec:P-384", AUTHORITY, "");
    let leaf = folder.signed(&below, "leaf", "ec:P-521", SERVER, "");
    refused(&narrow, &[&leaf, &below], "kubernetes", "(pathlen)");
    let leaf = folder.signed(&narrow, "leaf", "ec:P-521", SERVER, "");
    accepted(&narrow, &[&leaf], "kubernetes");

    let no_authority = folder.signed(&a, "between", "ec:P-384", "basicConstraints=CA:FALSE", "");
    let leaf = folder.signed(&no_authority, "leaf", "ec:P-521", SERVER, "");
    refused(&a, &[&leaf, &no_authority], "kubernetes", "CN=between is not an authority's");
    let unfit =
        folder.signed(&a, "between", "ec:P-384", "basicConstraints=CA:TRUE\nkeyUsage=digitalSignature", "");
    let leaf = folder.signed(&unfit, "leaf", "ec:P-521", SERVER, "");
    refused(&a, &[&leaf, &unfit], "kubernetes", "CN=between may not sign certificates");

    // Version 1, from before there were extensions.
    folder
        .openssl(&format!("req -new -config plain.cnf -subj /CN=old -key {} -out request", a.key.display()));
    let old = folder.0.join("old.crt");
    folder.openssl(&format!(
        "x509 -req -in request -days 30 -signkey {} -out {}",
        a.key.display(),
        old.display()
    ));
    let old = Party { key: a.key.clone(), certificate: old };
    assert_eq!(x509_parser::parse_x509_certificate(&old.der()).expect("read").1.version.0, 0);
    let leaf = folder.signed(&old, "leaf", "ec:P-384", SERVER, "");
    accepted(&old, &[&leaf], "kubernetes");

    // A maze: many authorities of one name, none of which leads out.
    let mazes: Vec<Party> = (0..14)
        .map(|number| {
            folder.signed(
                &by_b,
                &format!("between+{number}"),
                "ec:P-521",
                &format!("{AUTHORITY}\nsubjectAltName=DNS:{number}"),
                "",
            )
        })
        .collect();
    let leaf = folder.signed(&by_a, "leaf", "ec:P-256", SERVER, "");
    let shown: Vec<&Party> = [&leaf].into_iter().chain(&mazes).collect();
    refused(&a, &shown, "kubernetes", "too many certificates");
}

#[test]
fn names_and_addresses() {
    let folder = Folder::new("names");
    let root = folder.own("root", "ec:P-256", AUTHORITY, "");
    let leaf = |names: &str| folder.signed(&root, "leaf", "ec:P-384", names, "");
    let shown = leaf("subjectAltName=DNS:*.example.org,IP:10.96.0.1,IP:fd00::1");
    for host in ["api.example.org", "10.96.0.1", "fd00::1"] {
        accepted(&root, &[&shown], host);
    }
    for host in ["example.org", "a.b.example.org", "10.96.0.2", "fd00::2"] {
        refused(&root, &[&shown], host, "it is for *.example.org, 10.96.0.1, fd00::1, not for");
    }
    refused(&root, &[&leaf("basicConstraints=CA:FALSE")], "leaf", "no subjectAltName, and the common name");
    // An address is no name, and a name no address.
    refused(&root, &[&leaf("subjectAltName=DNS:10.96.0.1")], "10.96.0.1", "not for 10.96.0.1");
}

#[test]
fn limits_of_authorities() {
    let folder = Folder::new("limits");
    let names = "subjectAltName=DNS:api.example.org,IP:10.96.0.1";
    for (limits, reason) in [
        ("permitted;DNS:example.org", None),
        ("permitted;DNS:example.org,permitted;IP:10.96.0.0/255.255.0.0", None),
        ("excluded;DNS:example.com", None),
        ("permitted;DNS:example.com", Some("the name api.example.org is not among the permitted ones")),
        ("excluded;DNS:example.org", Some("the name api.example.org is excluded")),
        ("permitted;IP:10.97.0.0/255.255.0.0", Some("the address 10.96.0.1 is not among the permitted ones")),
        ("excluded;IP:10.0.0.0/255.0.0.0", Some("the address 10.96.0.1 is excluded")),
        ("permitted;dirName:dn", Some("critical extension 2.5.29.30")),
    ] {
        let extensions = format!("{AUTHORITY}\nnameConstraints=critical,{limits}\n[dn]\nO=example");
        let top = folder.own("top", "ec:P-256", AUTHORITY, "");
        let root = folder.signed(&top, "root", "ec:P-384", &extensions, "");
        let leaf = folder.signed(&root, "leaf", "ec:P-521", names, "");
        for (authority, shown) in [(&root, vec![&leaf]), (&top, vec![&leaf, &root])] {
            match reason {
                None => accepted(authority, &shown, "api.example.org"),
                Some(reason) => refused(authority, &shown, "api.example.org", reason),
            }
        }
    }
}

#[test]
fn purposes_and_extensions() {
    let folder = Folder::new("purposes");
    let root = folder.own("root", "ec:P-256", AUTHORITY, "");
    for (extension, reason) in [
        ("extendedKeyUsage=serverAuth,clientAuth", None),
        ("extendedKeyUsage=anyExtendedKeyUsage", None),
        ("extendedKeyUsage=clientAuth", Some("not for servers (extendedKeyUsage without serverAuth)")),
        ("keyUsage=critical,digitalSignature", None),
        ("certificatePolicies=critical,1.2.3.4", None),
        ("1.2.3.4=ASN1:UTF8String:unknown", None),
        (
            "1.2.3.4=critical,ASN1:UTF8String:unknown",
            Some("the critical extension 1.2.3.4, which is not understood"),
        ),
    ] {
        let leaf = folder.signed(&root, "leaf", "ec:P-384", &format!("{SERVER}\n{extension}"), "");
        match reason {
            None => accepted(&root, &[&leaf], "kubernetes"),
            Some(reason) => refused(&root, &[&leaf], "kubernetes", reason),
        }
    }
    let extensions = format!("{AUTHORITY}\nextendedKeyUsage=clientAuth");
    let between = folder.signed(&root, "between", "ec:P-384", &extensions, "");
    let leaf = folder.signed(&between, "leaf", "ec:P-521", SERVER, "");
    refused(&root, &[&leaf, &between], "kubernetes", "CN=between is not for servers");
}

#[test]
fn times() {
    let folder = Folder::new("times");
    let root = folder.own("root", "ec:P-256", AUTHORITY, "");
    let leaf = folder.signed(&root, "leaf", "ec:P-384", SERVER, "");
    let at =
        |authority: &Party, shown: &Party, days| verdict(&authority.text(), &[shown], "kubernetes", days);
    assert_eq!(at(&root, &leaf, 364), Ok(()));
    let late = at(&root, &leaf, 366).expect_err("expired");
    assert!(
        late.contains("the certificate of CN=leaf expired at ") && late.contains("must be renewed"),
        "{late}"
    );
    let early = at(&root, &leaf, -1).expect_err("not yet");
    assert!(early.contains("the certificate of CN=leaf is valid from "), "{early}");
    // An authority's own certificate counts as well.
    let brief = folder.own("brief", "ec:P-256", AUTHORITY, "-days 2");
    let leaf = folder.signed(&brief, "leaf", "ec:P-384", SERVER, "");
    assert_eq!(at(&brief, &leaf, 1), Ok(()));
    let late = at(&brief, &leaf, 3).expect_err("expired");
    assert!(late.contains("the certificate of CN=brief expired at "), "{late}");
}

#[test]
fn authority_files_of_every_make() {
    let folder = Folder::new("files");
    let root = folder.own("root", "ec:P-256", AUTHORITY, "");
    let leaf = folder.signed(&root, "leaf", "ec:P-384", SERVER, "");
    let text = String::from_utf8(root.text()).expect("text");
    let key = String::from_utf8(fs::read(&root.key).expect("a key")).expect("text");
    let damaged = text.replacen("MII", "!!!", 1);
    let no_certificate = pem::encode(&pem::Pem::new("CERTIFICATE", b"not a certificate".to_vec()));
    let other = String::from_utf8(leaf.text()).expect("text");
    for file in [
        text.replace('\n', "\r\n"),
        format!("# the authority\nsubject=CN=root\n\n{text}\nthe end"),
        format!("{key}{other}some words\n{text}"),
        format!("{damaged}\n{text}"),
        format!("{no_certificate}{text}"),
        text.trim_end().to_owned(),
    ] {
        assert_eq!(verdict(file.as_bytes(), &[&leaf], "kubernetes", 0), Ok(()), "{file}");
    }
    for (file, reason) in [
        (String::new(), "there is no CERTIFICATE block"),
        (key, "there is no CERTIFICATE block"),
        (no_certificate, "cannot be read"),
    ] {
        let said = verdict(file.as_bytes(), &[&leaf], "kubernetes", 0).expect_err("no authority");
        assert!(said.contains(reason), "{said}");
    }
}

#[test]
fn an_authority_file_is_read_again_and_a_broken_one_is_not_believed() {
    let folder = Folder::new("renewed");
    let (old, new) =
        (folder.own("old", "ec:P-256", AUTHORITY, ""), folder.own("new", "ec:P-384", AUTHORITY, ""));
    let path = folder.0.join("ca.crt");
    fs::write(&path, old.text()).expect("a file");
    let authority = Authority::of_file(path.clone()).expect("an authority");
    let holds = |party: &Party| *authority.certificates() == [party.der().to_vec()];
    assert!(holds(&old));
    fs::write(&path, new.text()).expect("a file");
    assert!(holds(&new));
    fs::write(&path, "").expect("a file");
    assert!(holds(&new));
    fs::remove_file(&path).expect("removed");
    assert!(holds(&new));
    assert!(Authority::of_file(path).is_err());
}
