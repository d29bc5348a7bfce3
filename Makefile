# The two commands of the README, and the smaller steps they are made of.

.PHONY: all demo test lint build bench bench-quick bench-build image image-test clean

all: build

build:
	@tools/setup build
	cargo build --release --locked -p kube-proxy

# An isolated node, an API server with a small cluster, kube-proxy for real, traffic, and an account of it.
demo:
	@tools/setup demo
	cargo build --release --locked -p kube-proxy -p integration --bin kube-proxy --bin demo
	target/release/demo

# Everything: formatting, lints, licences (where cargo-deny is installed), and all tests on a real kernel. Tests of how
# rules are listed run with the installed nft and with a current one. The last to speak is the test runner, with its count.
test: lint
	@tools/setup test
	PATH="$$(dirname "$${SWITCHYARD_NFT_CURRENT:-$$(tools/nft-current)}"):$$PATH" \
	    cargo nextest run --workspace --locked -E 'binary_id(switchyard-nft-netlink::listing)'
	cargo test --doc --workspace --locked -q
	deploy/image-test
	SWITCHYARD_NFT_CURRENT="$${SWITCHYARD_NFT_CURRENT:-$$(tools/nft-current)}" cargo nextest run --workspace --locked

lint:
	@tools/setup lint
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	@if cargo deny --version >/dev/null 2>&1; then cargo deny check licenses bans sources; \
	else echo "cargo-deny is not installed: the licence gate was not run"; fi

clean:
	cargo clean

# The container image, from the release build; BASE names another base image.
image: build
	deploy/image $(if $(BASE),--base $(BASE))

# Builds it from Debian packages, without a registry, and runs it as kubeadm's DaemonSet does.
image-test:
	@tools/setup test
	cargo build --locked -p kube-proxy -p integration --bin kube-proxy --bin apiserver
	deploy/image-test

# How the modes scale, in under five minutes on two cores; another kube-proxy takes part with PEER=path PEER_MODES=nftables,iptables.
BENCH = target/release/scale run --vm-run integration/vm/vm-run --vm-repetitions 1 --out target/bench \
	$(if $(PEER),--kube-proxy target/release/kube-proxy --peer $(PEER) --peer-mode $(or $(PEER_MODES),nftables))

bench-build:
	@tools/setup test
	cargo build --release --locked -p kube-proxy -p integration --bin kube-proxy --bin scale

bench-quick: bench-build
	$(BENCH) --workloads 100x10,1000x10 --changes 30 --changes-seconds 5 --churn 100 --churn-seconds 2 --first-packets 100 --connections-seconds 1 --limit 60

# The figures of docs/benchmarks.md, without those of the VM; takes the better part of an hour.
bench: bench-build
	$(BENCH) --modes nftables,iptables --workloads 100x10,1000x10,10kx10 --repetitions 5 --churn 10,100,1000 --limit 300
