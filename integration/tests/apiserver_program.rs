//! The embedded API server as a program.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn the_program_loads_files_writes_a_kubeconfig_and_serves() {
    let folder = std::env::temp_dir().join(format!("apiserver-program-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let (objects, kubeconfig) = (folder.join("objects.yaml"), folder.join("kubeconfig"));
    let yaml = "apiVersion: v1\nkind: Service\nmetadata: {namespace: shop, name: cart}\nspec: {clusterIP: 10.0.0.1}\n\
                ---\napiVersion: v1\nkind: Node\nmetadata: {name: n1}\n";
    std::fs::write(&objects, yaml).expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_apiserver"));
    command
        .args(["--listen", "127.0.0.1:0", "--load"])
        .arg(&objects)
        .arg("--kubeconfig-out")
        .arg(&kubeconfig);
    let mut running = Running(command.stdout(Stdio::piped()).spawn().expect("it starts"));
    let mut lines = BufReader::new(running.0.stdout.take().expect("piped")).lines();
    let mut next = || lines.next().expect("a line").expect("text");
    assert!(next().starts_with("loaded 2 objects"));
    let url = next().strip_prefix("serving on ").expect("its address").to_owned();
    assert!(std::fs::read_to_string(&kubeconfig).expect("written").contains(&url));

    let mut stream = TcpStream::connect(url.trim_start_matches("http://")).expect("it listens");
    write!(
        stream,
        "GET /api/v1/namespaces/shop/services/cart HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("10.0.0.1"), "{answer}");
    drop(std::fs::remove_dir_all(&folder));
}

#[test]
fn a_file_with_an_unknown_kind_is_refused_by_name() {
    let file = std::env::temp_dir().join(format!("apiserver-bad-{}.yaml", std::process::id()));
    std::fs::write(&file, "apiVersion: v1\nkind: Pod\nmetadata: {namespace: a, name: b}\n").expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_apiserver"));
    let output = command.args(["--listen", "127.0.0.1:0", "--load"]).arg(&file).output().expect("it ends");
    assert!(!output.status.success());
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(complaint.contains("Pod") && complaint.contains(&file.display().to_string()), "{complaint}");
    drop(std::fs::remove_file(&file));
}
