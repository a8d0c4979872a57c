# For the scripts beside it, to be sourced: a folder, ports and processes that end with the script, and the engine in its
# load-test configuration. Everything is on loopback.

home=$(mktemp -d)
# The processes that this script started and that still run, by id.
finish() {
    local pids
    mapfile -t pids < <(jobs -p)
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    rm -rf "$home"
}
trap finish EXIT

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
api=$(free_port)
clickhouse=$(free_port)

export INGESTION_HOST=127.0.0.1 INGESTION_PORT=$api INGESTION_SERVER_ADMIN_LISTEN="" INGESTION_DATA_DIR=$home/data
export INGESTION_AUTH_TENANTS_FILE=$home/tenants.toml
export INGESTION_CLICKHOUSE_EMBEDDED_PORT=$clickhouse INGESTION_LOG_LEVEL=${INGESTION_LOG_LEVEL:-warn}

# Writes the tenants of the load generator where start_engine looks for them.
#   make_tenants NUMBER
make_tenants() { target/release/load --tenants "$1" --tenant-config "$home/tenants.toml" --write-tenant-config; }

# Starts the engine (ENGINE, or that of the release build), as $engine, and waits until it takes events and stores them.
start_engine() {
    "${ENGINE:-target/release/ingestion-engine}" &
    engine=$!
    until curl -fsS "http://127.0.0.1:$api/health" 2>/dev/null | grep -q '"sink":{"state":"up"'; do
        kill -0 "$engine"
        sleep 0.2
    done
}
