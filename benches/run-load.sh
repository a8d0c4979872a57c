#!/usr/bin/env bash
# Starts an engine on an empty folder, sends it a million events, and checks that every acknowledged one is stored once.
#
#   benches/run-load.sh [embedded|broker] [arguments of the load generator, see --help]
#
# PLUGINS names libraries, separated by spaces, that are in the engine's plugin folder from the start; TENANTS is the number
# of tenants (50). Everything is on loopback and ends with this script. Needs `cargo build --release --workspace`
# (`make bench-load`).
set -euo pipefail
cd "$(dirname "$0")/.."

kind=${1:-embedded}
shift || true
source benches/engine.sh
tenants=${TENANTS:-50}
make_tenants "$tenants"
# The load is larger than what a tenant may send by default.
export INGESTION_QUOTA_EVENTS_PER_SECOND=${INGESTION_QUOTA_EVENTS_PER_SECOND:-0}
export INGESTION_QUOTA_BYTES_PER_SECOND=${INGESTION_QUOTA_BYTES_PER_SECOND:-0}

mkdir -p "$home/data/plugins"
for library in ${PLUGINS:-}; do cp "$library" "$home/data/plugins/"; done

if [[ $kind == broker ]]; then
    broker=$(free_port)
    "${XDG_CACHE_HOME:-$HOME/.cache}/ingestion-engine/tansu-0.6.0/tansu" broker \
        --listener-url "tcp://127.0.0.1:$broker" --advertised-listener-url "tcp://127.0.0.1:$broker" \
        --storage-engine memory://tansu/ >"$home/tansu.log" 2>&1 &
    export INGESTION_REDPANDA_BROKERS=127.0.0.1:$broker
    export INGESTION_REDPANDA_REPLICATION_FACTOR=1 INGESTION_REDPANDA_MIN_INSYNC_REPLICAS=1
fi

start_engine
target/release/load --url "http://127.0.0.1:$api" --tenants "$tenants" \
    --verify "http://127.0.0.1:$clickhouse" --engine-pid "$engine" "$@"
