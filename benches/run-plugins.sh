#!/usr/bin/env bash
# What plugins cost: the same load without plugins, through one that does nothing with any event, through `redact`, and
# through the first in a process of its own, in turn, so that all see the same machine.
#
#   benches/run-plugins.sh [rounds]
#
# Prints events acknowledged and stored a second for each run, then medians, and ratios to the runs without plugins. Needs
# `cargo build --release --workspace` (`make bench-plugins`).
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${1:-3}
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT

for round in $(seq "$rounds"); do
    for kind in none noop redact isolated; do
        case $kind in
            none) libraries="" ;;
            redact) libraries=target/release/libredact.so ;;
            *) libraries=target/release/libnoop.so ;;
        esac
        isolation=none
        if [[ $kind == isolated ]]; then isolation=process; fi
        echo "round $round of $rounds: $kind" >&2
        PLUGINS=$libraries INGESTION_PLUGINS_ISOLATION=$isolation \
            benches/run-load.sh embedded --json "$results/$kind-$round.json" >&2
    done
done

python3 - "$results" "$rounds" <<'PYTHON'
import json, statistics, sys

folder, rounds = sys.argv[1], int(sys.argv[2])
kinds = ["none", "noop", "redact", "isolated"]
names = {"none": "no plugin", "noop": "a plugin that keeps everything", "redact": "redact", "isolated": "the second, isolated"}


def figures(kind, number):
    with open(f"{folder}/{kind}-{number}.json") as file:
        return json.load(file)


reports = {kind: [figures(kind, number) for number in range(1, rounds + 1)] for kind in kinds}
base = None
print(f"{'':32} {'acknowledged/s':>16} {'ratio':>6} {'p99 ms':>8} {'CPU s/million':>14}")
for kind in kinds:
    rate = statistics.median(report["events_per_second"] for report in reports[kind])
    p99 = statistics.median(report["ack_ms"]["p99"] for report in reports[kind])
    cpu = statistics.median(report["cpu_seconds_per_million_until_stored"]["engine"] for report in reports[kind])
    base = base or rate
    print(f"{names[kind]:32} {rate:16,.0f} {rate / base:6.3f} {p99:8.1f} {cpu:14.2f}")
PYTHON
