"""A quiet tenant: sends one event at a time at a slow rate, and looks for each of them in ClickHouse.

Prints JSON: how long the acknowledgements took, and how long it was from the first byte of a request until a query found
the event. Queries go out every LOOK seconds, so the second is right to that much. Events that were sent are looked for until
all are found, at most PATIENCE seconds longer.

    probe.py --api http://host:port --credentials id:key --clickhouse http://host:port [--seconds 30] [--rate 20]
"""

import argparse
import http.client
import json
import threading
import time
import urllib.parse
import uuid

LOOK = 0.05
PATIENCE = 300


def connect(url):
    parts = urllib.parse.urlsplit(url)
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)


class Probe:
    def __init__(self, options):
        self.options = options
        self.lock = threading.Lock()
        self.begun = {}
        self.acks = []
        self.refused = {}
        self.queryable = {}
        self.done = False

    def send(self):
        connection = connect(self.options.api)
        headers = {"Authorization": f"Bearer {self.options.credentials}", "Content-Type": "application/json"}
        end = time.monotonic() + self.options.seconds
        due = time.monotonic()
        while (now := time.monotonic()) < end:
            event = str(uuid.uuid4())
            body = json.dumps({"id": event, "type": "pageview", "path": "/quiet"})
            connection.request("POST", "/ingest", body, headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status == 200:
                self.acks.append(time.monotonic() - now)
                with self.lock:
                    self.begun[event] = now
            else:
                self.refused[answer.status] = self.refused.get(answer.status, 0) + 1
            due += 1 / self.options.rate
            time.sleep(max(0, due - time.monotonic()))
        self.done = True

    def look(self):
        tenant = self.options.credentials.split(":")[0]
        # Cheap: the tenant is the first part of the sort key, and a quiet tenant has few rows.
        query = f"SELECT toString(event_id) FROM overwatch.events WHERE tenant_id = '{tenant}' FORMAT TSV"
        connection = connect(self.options.clickhouse)
        patience = None
        while True:
            try:
                connection.request("POST", "/", query)
                answer = connection.getresponse()
                text = answer.read().decode()
                found = set(text.split()) if answer.status == 200 else set()
            except (OSError, http.client.HTTPException):
                connection.close()
                found = set()
            now = time.monotonic()
            with self.lock:
                begun = dict(self.begun)
            for event in found & begun.keys() - self.queryable.keys():
                self.queryable[event] = now - begun[event]
            if self.done:
                patience = patience or now + PATIENCE
                if len(self.queryable) == len(begun) or now > patience:
                    return
            time.sleep(LOOK)


def quantile(values, share):
    values = sorted(values)
    return round(values[min(len(values) - 1, int(share * len(values)))] * 1000, 1) if values else None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--api", required=True)
    parser.add_argument("--credentials", required=True)
    parser.add_argument("--clickhouse", required=True)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rate", type=float, default=20)
    probe = Probe(parser.parse_args())
    looking = threading.Thread(target=probe.look)
    looking.start()
    probe.send()
    looking.join()
    stored = list(probe.queryable.values())
    result = {"acknowledged": len(probe.acks), "refused": probe.refused, "never_found": len(probe.acks) - len(stored)}
    for name, values in (("ack_ms", probe.acks), ("queryable_ms", stored)):
        result[name] = {"p50": quantile(values, 0.5), "p99": quantile(values, 0.99), "max": quantile(values, 1)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
