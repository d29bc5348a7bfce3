//! Certificates of an authority of one's own, made with openssl where they are needed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A certificate and its key, as files.
#[derive(Debug, Clone)]
pub struct Certified {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Certified {
    /// The certificate as DER.
    pub fn der(&self) -> io::Result<Vec<u8>> {
        openssl(Path::new("."), &["x509", "-outform", "DER", "-in", text(&self.certificate)])
    }
}

/// Signs certificates, below a folder.
#[derive(Debug)]
pub struct Authority {
    folder: PathBuf,
    pub own: Certified,
}

impl Authority {
    /// A new one, whose files begin with its name.
    pub fn create(folder: &Path, name: &str) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let own = key(folder, name)?;
        let subject = format!("/CN={name}");
        openssl(
            folder,
            &[
                "req",
                "-x509",
                "-new",
                "-days",
                "30",
                "-subj",
                &subject,
                "-key",
                text(&own.key),
                "-out",
                text(&own.certificate),
                "-addext",
                "basicConstraints=critical,CA:TRUE",
                "-addext",
                "keyUsage=critical,keyCertSign,cRLSign",
            ],
        )?;
        Ok(Self { folder: folder.to_owned(), own })
    }

    /// A server's, for 127.0.0.1 and `kubernetes`.
    pub fn server(&self, name: &str) -> io::Result<Certified> {
        self.issue(
            name,
            "subjectAltName=DNS:kubernetes,DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n",
        )
    }

    /// A client's; its name is the common name.
    pub fn client(&self, name: &str) -> io::Result<Certified> {
        self.issue(name, "extendedKeyUsage=clientAuth\n")
    }

    fn issue(&self, name: &str, extensions: &str) -> io::Result<Certified> {
        let made = key(&self.folder, name)?;
        let request = self.folder.join(format!("{name}.csr"));
        let file = self.folder.join(format!("{name}.ext"));
        fs::write(&file, extensions)?;
        let subject = format!("/CN={name}");
        openssl(
            &self.folder,
            &["req", "-new", "-subj", &subject, "-key", text(&made.key), "-out", text(&request)],
        )?;
        openssl(
            &self.folder,
            &[
                "x509",
                "-req",
                "-days",
                "30",
                "-in",
                text(&request),
                "-extfile",
                text(&file),
                "-CA",
                text(&self.own.certificate),
                "-CAkey",
                text(&self.own.key),
                "-CAcreateserial",
                "-out",
                text(&made.certificate),
            ],
        )?;
        Ok(made)
    }
}

fn key(folder: &Path, name: &str) -> io::Result<Certified> {
    let made = Certified {
        certificate: folder.join(format!("{name}.crt")),
        key: folder.join(format!("{name}.key")),
    };
    openssl(
        folder,
        &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", text(&made.key)],
    )?;
    Ok(made)
}

fn openssl(folder: &Path, arguments: &[&str]) -> io::Result<Vec<u8>> {
    let output = Command::new("openssl").args(arguments).current_dir(folder).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("openssl {arguments:?}: {}", complaint.trim())))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("tests choose UTF-8 paths")
}
