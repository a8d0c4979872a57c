#!/usr/bin/env bash
# What a quiet tenant feels of a flooding one: the time of its acknowledgements, and from sending an event until a query finds
# it, alone, beside a flood that is accepted, and while what the flood has piled up during an outage of ClickHouse drains.
#
#   benches/run-fairness.sh [seconds of each part]
#
# FLOOD (50000) is the flood's rate in events a second, for which it has the quota; OUTAGE (20) the seconds of the outage.
# ClickHouse is the embedded engine as a server of its own, so that it can be away. Needs
# `cargo build --release --workspace` (`make bench-fairness`).
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-30}
flood=${FLOOD:-50000}
outage=${OUTAGE:-20}
source benches/engine.sh
make_tenants 2
quiet=$(target/release/load --credentials 1)
export INGESTION_CLICKHOUSE_URL=http://127.0.0.1:$clickhouse

start_clickhouse() {
    target/release/ingestion-engine clickhouse --path "$home/clickhouse" --port "$clickhouse" &
    server=$!
    until curl -fsS "http://127.0.0.1:$clickhouse/ping" >/dev/null 2>&1; do
        kill -0 "$server"
        sleep 0.1
    done
}
# The first tenant, for so many seconds.
start_flood() {
    target/release/load --url "http://127.0.0.1:$api" --tenants 1 --rate "$flood" --events 1000000000 --duration "$1" \
        >"$home/flood.txt" 2>/dev/null &
    flooding=$!
}
probe() {
    python3 benches/probe.py --api "http://127.0.0.1:$api" --clickhouse "http://127.0.0.1:$clickhouse" \
        --credentials "$quiet" --seconds "$1" >"$home/$2.json"
}
# The generator says with its exit status what it thinks of requests that were cut off by the end of the time.
end_flood() {
    wait "$flooding" || true
    grep -E '^(acknowledged|ack |requests)' "$home/flood.txt" >&2
}
rows() { curl -fsS "http://127.0.0.1:$clickhouse/" -d 'SELECT count() FROM overwatch.events'; }
# Until the number of rows stays the same for two seconds.
settle() {
    local before=-1 now
    while now=$(rows) && [[ $now != "$before" ]]; do
        before=$now
        sleep 2
    done
}

start_clickhouse
start_engine

echo "alone, $seconds s" >&2
probe "$seconds" alone

echo "beside a flood of $flood events/s, $seconds s" >&2
start_flood "$((seconds + 4))"
sleep 2
probe "$seconds" beside
end_flood
settle

echo "an outage of ClickHouse of $outage s with the flood going on, and the drain after it" >&2
start_flood "$outage"
sleep 1
kill "$server"
wait "$server" || true
end_flood
backlog=$(sed -n 's/^acknowledged *\([0-9]*\).*/\1/p' "$home/flood.txt")
start_clickhouse
probe "$seconds" drain

python3 - "$home" "$backlog" <<'PYTHON'
import json, sys

home, backlog = sys.argv[1], float(sys.argv[2])
print(f"{'quiet tenant, ms':34} {'ack p50':>9} {'ack p99':>9} {'queryable p50':>14} {'queryable p99':>14} {'events':>7}")
for name, label in (
    ("alone", "alone"),
    ("beside", "beside a flood"),
    ("drain", f"while {backlog:,.0f} events drain"),
):
    with open(f"{home}/{name}.json") as file:
        found = json.load(file)
    ack, queryable = found["ack_ms"], found["queryable_ms"]
    odd = f"  refused {found['refused']}, never found {found['never_found']}" if found["refused"] or found["never_found"] else ""
    print(
        f"{label:34} {ack['p50']:9} {ack['p99']:9} {queryable['p50']:14} {queryable['p99']:14} {found['acknowledged']:7}{odd}"
    )
PYTHON
