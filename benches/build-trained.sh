#!/usr/bin/env bash
# Builds an engine whose code is laid out by what the benchmark's load does (PGO), and which may use all instructions of this
# machine's CPU: target/trained/<target>/release/ingestion-engine. It does not run on an older CPU.
#
#   benches/build-trained.sh
#
# CPU is what rustc's -Ctarget-cpu is given (native). Needs `cargo build --release --workspace` for the load generator, and an
# llvm-profdata that reads what the compiler writes: `rustup component add llvm-tools`, or Debian's llvm-<version of `rustc -vV`>;
# LLVM_PROFDATA names another. Two builds from nothing, and a minute of load between them (`make build-trained`).
set -euo pipefail
cd "$(dirname "$0")/.."

target=$(rustc -vV | sed -n 's/^host: //p')
version=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
for candidate in "${LLVM_PROFDATA:-}" "$(rustc --print sysroot)/lib/rustlib/$target/bin/llvm-profdata" "llvm-profdata-$version"; do
    if [[ -n $candidate ]] && command -v "$candidate" >/dev/null; then profdata=$candidate && break; fi
done
[[ -n ${profdata:-} ]] || {
    echo "error: no llvm-profdata of LLVM $version: run 'rustup component add llvm-tools', or install llvm-$version" >&2
    exit 1
}

# With a target of their own, build scripts and macros are not built with these flags.
build() { cargo build --release --locked --target "$target" --target-dir "$1" --bin ingestion-engine; }
data=$PWD/target/trained/profile
rm -rf "$data"
RUSTFLAGS="-Cprofile-generate=$data" build target/trained/generate
for run in "embedded 100" "embedded 10" "embedded 1" "broker 100"; do
    read -r kind batch <<<"$run"
    ENGINE=target/trained/generate/$target/release/ingestion-engine \
        benches/run-load.sh "$kind" --batch "$batch" --duration 10 --events 1000000
done
"$profdata" merge --output "$data.profdata" "$data"
RUSTFLAGS="-Cprofile-use=$data.profdata -Ctarget-cpu=${CPU:-native}" build target/trained
echo "target/trained/$target/release/ingestion-engine"
