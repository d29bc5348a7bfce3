//! The iptables backend: kube-proxy's chains, written in less time
