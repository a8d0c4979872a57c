// Made from plugins/abi/src by `BLESS=1 cargo test -p ingestion-plugin-abi --test header`: do not edit.
//
// # The contract between the engine and a plugin
//
// A plugin is a shared library that exports one symbol, `ingestion_plugin`: a constant `ingestion_plugin_t`. It begins with a
// `ingestion_header_t`, which never changes; the engine reads it before it touches anything else. Everything here is `repr(C)`, so
// that a plugin can be written in any language that C can call; `include/ingestion_plugin.h` is made from this file.
//
// ```text
// describe()                        once, before anything else: who are you (JSON, see `descriptor`)
// create(host, config)              an instance, once for each time that the plugin is taken into use
// process(instance, batch, results) many times, on many threads at once
// release(instance, results)        after every process, whatever it returned
// destroy(instance)                 once, when no call is under way any more
// ```
//
// # Growth
// - A **minor** version appends: fields at the end of `ingestion_plugin_t`, `ingestion_host_t` and `ingestion_batch_t`, values to the `u32` types.
//   Nothing is moved, removed or given another meaning. Each of the three says how large it is (`struct_size`); a field
//   that lies beyond that size is not there. So an old plugin runs in a new engine, and a new one in an old engine of the
//   same major version.
// - `ingestion_header_t`, `ingestion_bytes_t`, `ingestion_event_t`, `ingestion_verdict_t` and `ingestion_failure_t` are frozen within a major version: they stand in
//   arrays or are made by both sides.
// - `tests/layout.rs` holds the place of every field, and `tests/minor_0.rs` runs a plugin of the first minor version.
// - A **major** version may change everything but `ingestion_header_t` and `ingestion_plugin`. The engine refuses another major version.
//
// | minor | what came |
// | --- | --- |
// | 0 | everything not named below |
// | 1 | `ingestion_plugin_t.health`, `ingestion_batch_t.purpose`, `ingestion_host_t.count`, `ingestion_host_t.gauge` |
//
// # Memory
// Whoever allocates frees. What one side lends to the other is valid until the function that it was given to returns,
// unless the field says otherwise. Texts are UTF-8 with a length and without a terminating zero.
//
// # Threads
// Every function says which threads may call it. No function may keep a thread to itself for longer than the
// engine's deadline, and none may unwind (a Rust panic, a C++ exception) into the engine: the process would end.
//
// # The descriptor
//
// What a plugin says of itself: the JSON document that `ingestion_plugin_t.describe` returns.
//
// Unknown members are ignored, so that a newer plugin can say more to a newer engine. All but `name`, `version`, and the
// `type` and `examples` of an added type can be left out.
//
// ```json
// {
//   "name": "purchase", "version": "1.0.0", "description": "Orders of a shop",
//   "adds": [{ "type": "purchase", "description": "An order was paid", "schema": { }, "examples": [{ }] }],
//   "enriches": ["pageview"], "examples": [{ "type": "pageview", "path": "/" }], "fail_closed": false,
//   "tables": [{
//     "name": "orders", "types": ["purchase"],
//     "columns": [{ "name": "total", "type": "Decimal(18, 4)", "value": { "property": "total" } }],
//     "order_by": ["order_id"]
//   }],
//   "views": [{
//     "name": "revenue_daily", "from": "orders",
//     "group_by": [{ "name": "day", "type": "Date", "value": { "sql": "toDate(timestamp)" } }],
//     "measures": [{ "name": "revenue", "function": "sum", "type": "Decimal(38, 4)", "value": { "column": "total" } }]
//   }]
// }
// ```

#ifndef INGESTION_PLUGIN_H
#define INGESTION_PLUGIN_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// The first eight bytes of a `ingestion_header_t`: `INGESTPL` in the order of memory on a little-endian machine. Frozen.
#define INGESTION_MAGIC 5498987861640695369

// Version of what is not compatible.
#define INGESTION_ABI_MAJOR 1

// Version of what was appended.
#define INGESTION_ABI_MINOR 1

// Size of `ingestion_plugin_t` in minor version 0, the least that a plugin may have.
#define INGESTION_PLUGIN_SIZE_1_0 64

// What is checked before anything else is touched. Frozen for ever, across major versions.
typedef struct {
    // `INGESTION_MAGIC`.
    uint64_t magic;
    // `INGESTION_ABI_MAJOR` that the plugin was compiled with.
    uint32_t abi_major;
    // `INGESTION_ABI_MINOR` that the plugin was compiled with.
    uint32_t abi_minor;
    // Size of the plugin's `ingestion_plugin_t`, in bytes, the header included.
    uint64_t struct_size;
} ingestion_header_t;

// Bytes with their length; UTF-8 wherever a text is meant. `data` may be anything while `len` is 0. Frozen.
typedef struct {
    // The first byte.
    const uint8_t *data;
    // Number of bytes.
    uint64_t len;
} ingestion_bytes_t;

// How a function ended. A value that is not listed counts as `INGESTION_STATUS_FAILED`.
typedef uint32_t ingestion_status_t;
// It did what it should.
#define INGESTION_STATUS_OK 0
// It did not; `ingestion_failure_t` says why.
#define INGESTION_STATUS_FAILED 1
// It caught a panic or an exception of its own; `ingestion_failure_t` has its message.
#define INGESTION_STATUS_PANICKED 2

// What becomes of an event.
typedef uint32_t ingestion_outcome_t;
// Nothing was said: the engine takes the whole call for a fault.
#define INGESTION_OUTCOME_NONE 0
// It is good as it is.
#define INGESTION_OUTCOME_KEEP 1
// It is good, with `ingestion_verdict_t.first` in its place: one JSON object with the same `type`, and with the same `id` and
// `tenant_id` or without them.
#define INGESTION_OUTCOME_REPLACE 2
// It is bad, and its sender is told so: `ingestion_verdict_t.first` is a code (`[a-z][a-z0-9_]*`, at most 64 bytes),
// `ingestion_verdict_t.second` says in words what is wrong and how to mend it.
#define INGESTION_OUTCOME_REJECT 3
// It is not wanted, and its sender is told "accepted": `ingestion_verdict_t.first` is a reason of the same form as a code.
#define INGESTION_OUTCOME_DROP 4

// Severity of a log line.
typedef uint32_t ingestion_level_t;
// Somebody has to act.
#define INGESTION_LEVEL_ERROR 1
// Somebody should look.
#define INGESTION_LEVEL_WARN 2
// What happens seldom and is as it should be.
#define INGESTION_LEVEL_INFO 3
// For whoever looks for a fault.
#define INGESTION_LEVEL_DEBUG 4

// Why events are processed.
typedef uint32_t ingestion_purpose_t;
// They were just sent.
#define INGESTION_PURPOSE_LIVE 0
// They were parked while the plugin was quarantined.
#define INGESTION_PURPOSE_REPROCESS 1
// They are the plugin's own examples; nothing is stored.
#define INGESTION_PURPOSE_CHECK 2

// Room for the words of an error. The caller provides it; the callee copies at most `capacity` bytes of UTF-8 to `data`
// and sets `len`. Frozen.
typedef struct {
    // Where to write.
    uint8_t *data;
    // Bytes that may be written.
    uint64_t capacity;
    // Bytes that were written; the caller sets it to 0 before.
    uint64_t len;
} ingestion_failure_t;

// One event. Frozen.
typedef struct {
    // The event: a JSON object that the engine has found to be a valid event. Its `type` is one that the plugin
    // handles.
    ingestion_bytes_t json;
    // Its type, unescaped.
    ingestion_bytes_t kind;
    // Its id (UUID, big-endian): the sender's, or the one that the engine made.
    uint8_t id[16];
} ingestion_event_t;

// Events of one request, at least one. They belong to one tenant.
typedef struct {
    // Size of this struct as the engine has it.
    uint64_t struct_size;
    // The tenant (UUID, big-endian).
    uint8_t tenant_id[16];
    // When the events were received, milliseconds since 1970.
    int64_t received_at_ms;
    // The events.
    const ingestion_event_t *events;
    // How many.
    uint64_t count;
    // Why. Since minor 1.
    ingestion_purpose_t purpose;
    // Zero. Since minor 1.
    uint32_t reserved;
} ingestion_batch_t;

// What the plugin says of one event. The engine provides one for each, with `INGESTION_OUTCOME_NONE`. Frozen.
typedef struct {
    // What becomes of it.
    ingestion_outcome_t outcome;
    // Zero.
    uint32_t reserved;
    // See `ingestion_outcome_t`. Memory of the plugin, valid until `ingestion_plugin_t.release`.
    ingestion_bytes_t first;
    // See `ingestion_outcome_t`. Memory of the plugin, valid until `ingestion_plugin_t.release`.
    ingestion_bytes_t second;
    // For the plugin: the engine does not touch it.
    void *owner;
} ingestion_verdict_t;

// What the engine does for a plugin. Valid, with everything that it points to, until the process ends.
typedef struct {
    // Size of this struct as the engine has it.
    uint64_t struct_size;
    // `INGESTION_ABI_MINOR` of the engine.
    uint32_t abi_minor;
    // Zero.
    uint32_t reserved;
    // The first argument of every function below.
    void *context;
    // Writes a log line with the plugin's name; copies `message`. Any thread; does not block.
    void (*log)(void *context, ingestion_level_t level, ingestion_bytes_t message);
    // Now, milliseconds since 1970. Any thread; does not block.
    int64_t (*now_ms)(void *context);
    // Adds `by` to the counter `name` of the plugin, shown in `/metrics`; copies `name`. Names have the form of a code; a
    // plugin has at most 100 of them, counters and gauges together, further ones are ignored with a warning. Any thread;
    // does not block. Since minor 1.
    void (*count)(void *context, ingestion_bytes_t name, uint64_t by);
    // Sets the gauge `name` of the plugin; copies `name`. Any thread; does not block. Since minor 1.
    void (*gauge)(void *context, ingestion_bytes_t name, double value);
} ingestion_host_t;

// What a plugin exports under `ingestion_plugin`: a constant, so that no code of the plugin runs before its header was read.
typedef struct {
    // Who speaks which version.
    ingestion_header_t header;
    // The plugin's description as JSON: see `descriptor`. The bytes are the plugin's, are valid until the process ends
    // and are the same at every call. What is not a JSON object is shown as the words of a failure. One thread; before
    // any other function.
    ingestion_bytes_t (*describe)(void);
    // Makes an instance. `config` is a JSON object, the table `[plugins.config.<name>]`, lent for the call; `host` may be
    // kept. What is returned is the plugin's, to be freed by `destroy`; null after a failure, with the reason in
    // `failure`. One thread; an older instance, of this library or another, may still be in use on others.
    void *(*create)(const ingestion_host_t *host, ingestion_bytes_t config, ingestion_failure_t *failure);
    // Says what becomes of each event: fills `batch.count` verdicts, in the order of the events. Everything is lent for
    // the call; what the verdicts point to is the plugin's until `release`. After another status than `INGESTION_STATUS_OK`
    // the verdicts are not read. Many threads at once, with one instance.
    ingestion_status_t (*process)(void *instance,
                                  const ingestion_batch_t *batch,
                                  ingestion_verdict_t *verdicts,
                                  ingestion_failure_t *failure);
    // Frees what the verdicts of one call point to: they are as `process` left them. Called once after every `process`
    // that returned, on its thread, whatever it returned.
    void (*release)(void *instance, ingestion_verdict_t *verdicts, uint64_t count);
    // Ends and frees the instance. One thread, once, when no other function is under way with it; not at all while a
    // call of `process` hangs, nor when the engine stops at once.
    void (*destroy)(void *instance);
    // Whether the plugin can do its work, with the reason in `failure` if not: shown in `/health`. May be null. One
    // thread at a time, beside `process`. Since minor 1.
    ingestion_status_t (*health)(void *instance, ingestion_failure_t *failure);
} ingestion_plugin_t;

// Makes a name visible outside of the library, with -fvisibility=hidden too.
#define INGESTION_EXPORT __attribute__((visibility("default")))

// What every plugin defines:
//     const ingestion_plugin_t ingestion_plugin = {.header = INGESTION_HEADER, .describe = ...};
extern INGESTION_EXPORT const ingestion_plugin_t ingestion_plugin;

// The header of a plugin that is compiled with this file.
#define INGESTION_HEADER {INGESTION_MAGIC, INGESTION_ABI_MAJOR, INGESTION_ABI_MINOR, sizeof(ingestion_plugin_t)}

#ifdef __cplusplus
}
#endif

#endif // INGESTION_PLUGIN_H
