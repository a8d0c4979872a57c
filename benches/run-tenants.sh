#!/usr/bin/env bash
# What many tenants cost: the same load from 1 tenant and from 100,000, in turn, so that both see the same machine. Quotas are
# on (every tenant has its buckets, and each request takes from them), and high enough to refuse nothing.
#
#   benches/run-tenants.sh [rounds] [arguments of the load generator]
#
# Prints medians of the rate, the latency and the engine's memory, and their ratios; MANY (100000) is the number of tenants.
# Needs `cargo build --release --workspace` (`make bench-tenants`).
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${1:-3}
shift || true
many=${MANY:-100000}
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
export INGESTION_QUOTA_EVENTS_PER_SECOND=1000000000 INGESTION_QUOTA_EVENTS_BURST=1000000000
export INGESTION_QUOTA_BYTES_PER_SECOND=16GiB INGESTION_QUOTA_BYTES_BURST=2GiB

for round in $(seq "$rounds"); do
    for tenants in 1 "$many"; do
        echo "round $round of $rounds: $tenants tenants" >&2
        TENANTS=$tenants benches/run-load.sh embedded --json "$results/$tenants-$round.json" "$@" >&2
    done
done

python3 - "$results" "$rounds" "$many" <<'PYTHON'
import json, statistics, sys

folder, rounds, many = sys.argv[1], int(sys.argv[2]), sys.argv[3]


def figures(tenants):
    reports = []
    for number in range(1, rounds + 1):
        with open(f"{folder}/{tenants}-{number}.json") as file:
            reports.append(json.load(file))
    median = lambda look: statistics.median(look(report) for report in reports)
    return {
        "events acknowledged a second": median(lambda report: report["events_per_second"]),
        "acknowledgement p50, ms": median(lambda report: report["ack_ms"]["p50"]),
        "acknowledgement p99, ms": median(lambda report: report["ack_ms"]["p99"]),
        "engine, MiB before the load": median(lambda report: report["engine_mib"]["before"]),
        "engine, MiB after it": median(lambda report: report["engine_mib"]["after"]),
        "engine, MiB at most": median(lambda report: report["engine_mib"]["most"]),
    }


one, all = figures("1"), figures(many)
print(f"{'':30} {'1 tenant':>14} {many + ' tenants':>18} {'ratio':>7}")
for name in one:
    print(f"{name:30} {one[name]:14,.1f} {all[name]:18,.1f} {all[name] / one[name]:7.3f}")
PYTHON
