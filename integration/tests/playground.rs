//! The playground's shell, without a person.

use std::process::Command;

/// Waits for kube-proxy as a person would: asks again.
const WAIT: &str = "answers() { for _ in $(seq 300); do ask \"$1\" | grep -q answered && return; sleep 0.1; done; return 1; }; ";

fn play(mode: &str, commands: &str) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_playground"))
        .args(["--mode", mode, "-c", &format!("{WAIT}{commands}")])
        .output()
        .expect("it was built");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn services_of_ones_own_are_served_in_the_shell() {
    for mode in ["nftables", "iptables"] {
        let (well, said) = play(
            mode,
            "kubectl apply -f web.yaml; kubectl apply -f web.yaml; kubectl get services; answers 172.30.0.1:80; \
             ask 172.30.0.1:80 20; from client ask 192.168.50.1:30080; from pod-a ask '[fd00:30::1]:80'; \
             sed 's/app: web/pod: pod-d/; s/nodePort.*//; s/name: web/name: one/; s/NodePort/ClusterIP/' web.yaml | kubectl apply -f -; \
             answers 172.30.0.2:80; from pod-b ask 172.30.0.2:80; kubectl delete svc web; kubectl get endpointslices; test -s \"$KUBECONFIG\"",
        );
        assert!(well, "{said}");
        for line in [
            "service/web created",
            "service/web configured",
            "endpointslice/web-v4 created",
            "service/one created",
        ] {
            assert!(said.lines().any(|told| told == line), "{line} is not in {said}");
        }
        for pod in ["pod-a", "pod-b", "pod-c", "pod-d", "pod-e"] {
            assert!(said.contains(&format!("{pod} answered on port 8080")), "{mode}: {pod} is not in {said}");
        }
        assert!(
            said.contains("service \"web\" deleted")
                && said.contains("one-v4")
                && !said.contains("no answer"),
            "{said}"
        );
    }
}

#[test]
fn mistakes_are_told() {
    let (well, said) = play("nftables", "kubectl apply -f nothing.yaml");
    assert!(!well && said.contains("nothing.yaml"), "{said}");
    let (well, said) = play("nftables", "from nowhere true");
    assert!(!well && said.contains("there are node, node2, client"), "{said}");
    let (well, said) = play("nftables", "kubectl get pods");
    assert!(!well && said.contains("pods: no such kind here"), "{said}");
}
