#!/usr/bin/env bash
# Starts an engine on an empty folder, sends it a million events, and checks that every acknowledged one is stored once.
#
#   benches/run-load.sh [embedded|broker] [arguments of the load generator, see --help]
#
# PLUGINS names libraries, separated by spaces, that are in the engine's plugin folder from the start.
# Everything is on loopback and ends with this script. Needs `cargo build --release --workspace` (`make bench-load`).
set -euo pipefail
cd "$(dirname "$0")/.."

kind=${1:-embedded}
shift || true
home=$(mktemp -d)
pids=()
# The processes that this script started, by id.
finish() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    rm -rf "$home"
}
trap finish EXIT

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
api=$(free_port)
clickhouse=$(free_port)

target/release/load --url "http://127.0.0.1:$api" --tenant-config "$home/engine.toml" --write-tenant-config
export INGESTION_HOST=127.0.0.1 INGESTION_PORT=$api INGESTION_SERVER_ADMIN_LISTEN="" INGESTION_DATA_DIR=$home/data
export INGESTION_CLICKHOUSE_EMBEDDED_PORT=$clickhouse INGESTION_LOG_LEVEL=warn
# The load is larger than what a tenant may send by default.
export INGESTION_QUOTA_EVENTS_PER_SECOND=0 INGESTION_QUOTA_BYTES_PER_SECOND=0

mkdir -p "$home/data/plugins"
for library in ${PLUGINS:-}; do cp "$library" "$home/data/plugins/"; done

if [[ $kind == broker ]]; then
    broker=$(free_port)
    "${XDG_CACHE_HOME:-$HOME/.cache}/ingestion-engine/tansu-0.6.0/tansu" broker \
        --listener-url "tcp://127.0.0.1:$broker" --advertised-listener-url "tcp://127.0.0.1:$broker" \
        --storage-engine memory://tansu/ >"$home/tansu.log" 2>&1 &
    pids+=($!)
    export INGESTION_REDPANDA_BROKERS=127.0.0.1:$broker
    export INGESTION_REDPANDA_REPLICATION_FACTOR=1 INGESTION_REDPANDA_MIN_INSYNC_REPLICAS=1
fi

target/release/ingestion-engine --config "$home/engine.toml" &
engine=$!
pids+=("$engine")
until curl -fsS "http://127.0.0.1:$api/health" 2>/dev/null | grep -q '"sink":{"state":"up"'; do
    kill -0 "$engine"
    sleep 0.2
done

target/release/load --url "http://127.0.0.1:$api" --tenant-config "$home/engine.toml" \
    --verify "http://127.0.0.1:$clickhouse" --engine-pid "$engine" "$@"
