# The two commands of the README, and the smaller steps they are made of.

# MODE=nftables, iptables or ipvs, for demo and playground.
MODE = nftables

.PHONY: all demo test test-old-kernel lint build bench bench-quick bench-docs bench-build bench-round-trip bench-encodings image image-test clean playground release

all: build

build:
	@tools/setup build
	cargo build --release --locked -p kube-proxy

# An isolated node, an API server with a small cluster, kube-proxy for real, traffic, and an account of it.
demo:
	@tools/setup demo
	cargo build --release --locked -p kube-proxy -p integration --bin kube-proxy --bin demo
	$(if $(filter ipvs,$(MODE)),tools/with-ipvs) target/release/demo --mode $(MODE)

# A shell on such a node, to try Services of one's own: kubectl, ask, from. Ends with `exit`. It is not for the VM: where the
# machine's kernel has no IPVS, MODE=ipvs is not to be had.
playground:
	@tools/setup demo
	cargo build --release --locked -p kube-proxy -p integration --bin kube-proxy --bin playground
	target/release/playground --mode $(MODE)

# Tests wait most of the time, so that there are more of them than processors: see .config/nextest.toml.
TEST_THREADS = $$(( $$(nproc) > 4 ? 2 * $$(nproc) : 8 ))

# Everything: formatting, lints, licences (where cargo-deny is installed), and all tests on a real kernel. Tests of how
# rules are listed run with the installed nft and with a current one. The last to speak is the test runner, with its count.
test: lint
	@tools/setup test
	PATH="$$(dirname "$${SWITCHYARD_NFT_CURRENT:-$$(tools/nft-current)}"):$$PATH" \
	    cargo nextest run --workspace --locked -E 'binary_id(switchyard-nft-netlink::listing)'
	cargo test --doc --workspace --locked -q
	$$(tools/python-env) deploy/manifests-test
	$(IMAGE_PROGRAMS)
	deploy/image-test
	SWITCHYARD_NFT_CURRENT="$${SWITCHYARD_NFT_CURRENT:-$$(tools/nft-current)}" cargo nextest run --workspace --locked --test-threads $(TEST_THREADS)

# All that can run on the old kernel does, where `make test` runs the part of it that differs most between kernels.
test-old-kernel:
	@tools/setup test
	SWITCHYARD_OLD_KERNEL=all cargo nextest run --workspace --locked -E 'binary_id(integration::old_kernel)'

lint:
	@tools/setup lint
	cargo fmt --all --check
	cargo run --locked -q -p house
	tools/picture --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	@if cargo deny --version >/dev/null 2>&1; then cargo deny check licenses bans sources; \
	else echo "cargo-deny is not installed: the licence gate was not run"; fi

clean:
	cargo clean

# The container image, from the release build; BASE names another base image. SMALL=yes makes the one without programs, for
# nftables mode.
image: build
	$(if $(SMALL),tools/static-binary release)
	deploy/image $(if $(BASE),--base $(BASE)) $(if $(SMALL),--small yes)

# Everything that a release consists of, built, signed with a key of this run, and verified: target/release-artifacts.
release:
	@tools/setup test
	tools/release --dry-run

# What the images' test takes. All crates are compiled as for the tests; the static program takes them from there.
define IMAGE_PROGRAMS
cargo build --workspace --locked --bin kube-proxy --bin apiserver
tools/static-binary debug
endef

# Builds both from Debian packages, without a registry, twice, and runs them as kubeadm's DaemonSet does.
image-test:
	@tools/setup test
	$(IMAGE_PROGRAMS)
	deploy/image-test

# How the modes scale; another kube-proxy takes part with PEER=path, and KUBEBUILDER_ASSETS=folder has a real API server serve it.
SCALE = target/release/scale
BENCH = $(SCALE) run --kube-proxy target/release/kube-proxy
PEER_IN = $(if $(PEER),--peer $(PEER) --peer-mode $(1))
COMMA = ,
IN_VM = --vm-run integration/vm/vm-run

bench-build:
	@tools/setup test
	cargo build --release --locked -p kube-proxy -p integration --bin kube-proxy --bin scale

# Processor time for both encodings of the API, as in docs/architecture.md.
bench-encodings: bench-build
	cargo build --release --locked -p integration --bin encodings
	SWITCHYARD_KUBE_PROXY=target/release/kube-proxy target/release/encodings 10kx10 5

# In under five minutes on two cores.
bench-quick: bench-build
	$(BENCH) $(call PEER_IN,$(or $(PEER_MODES),nftables)) $(IN_VM) --repetitions 3 --vm-repetitions 1 --workloads 100x10,1000x10 \
	    --changes 20 --changes-seconds 2 --churn 100 --churn-seconds 2 --first-packets 50 --connections-seconds 1 --limit 60 \
	    --out target/bench-quick

# All figures of docs/benchmarks.md, some 25 minutes on four cores with a peer, or half of that and no
# ratios with REPETITIONS=1; `make bench-docs` then writes them there.
REPETITIONS = 3

bench: bench-build
	$(BENCH) $(call PEER_IN,nftables$(COMMA)iptables) --modes nftables,iptables --workloads 1000x10 --repetitions $(REPETITIONS) \
	    --changes 60 --changes-seconds 6 --churn 1,10,100,1000 --churn-seconds 3 --connections-seconds 1 --out target/bench/1000
	$(BENCH) $(call PEER_IN,nftables) --modes nftables,iptables --workloads 10kx10 --repetitions $(REPETITIONS) \
	    --changes 40 --changes-seconds 6 --churn 100 --churn-seconds 5 --connections-seconds 1 --out target/bench/10k
	$(BENCH) --api-server embedded --modes nftables --repetitions $(REPETITIONS) --changes 40 --changes-seconds 4 --churn 100 --churn-seconds 3 \
	    --workloads issue-139513,issue-135639,k8s-blog-5k,k8s-blog-30k,one-big-service,rolling-update,mixed \
	    --first-packets 200 --connections-seconds 1 --out target/bench/named
	$(BENCH) --modes nftables,ipvs,iptables $(IN_VM) --vm both --vm-only --workloads 100x10 --repetitions $(REPETITIONS) \
	    --changes 20 --changes-seconds 5 --churn 10 --churn-seconds 3 --first-packets 50 --connections-seconds 1 --out target/bench/vm
	$(SCALE) report $(BENCH_RESULTS) --out target/bench

# What a packet's way costs beside no rules at all: a minute or two on a machine that does nothing else; the table goes into
# docs/benchmarks.md with DOCS=.
ROUND_TRIP_MODES = nftables,iptables

bench-round-trip: bench-build
	$(SCALE) round-trip --kube-proxy target/release/kube-proxy --modes $(ROUND_TRIP_MODES) $(call PEER_IN,$(or $(PEER_MODES),nftables)) \
	    --workload 10kx10 --out target/bench/round-trip $(if $(DOCS),--docs $(DOCS))

BENCH_RESULTS = $(patsubst %,target/bench/%/results.json,1000 10k named vm/uml vm/qemu)

bench-docs:
	$(SCALE) report $(BENCH_RESULTS) --out target/bench --docs .
