// Gives every line of the standard input to the plugin, as one event of one batch, and writes what it says of it. Every
// event lies in memory of exactly its size, so that a sanitizer sees a read beyond it. For memory.rs.

#include "../utm.c"

#include <stdio.h>

enum { LINE_BYTES = 1 << 16 };

static uint64_t counted;

static void no_log(void *context, ingestion_level_t level, ingestion_bytes_t message)
{
    (void)context, (void)level, (void)message;
}

static int64_t no_time(void *context)
{
    (void)context;
    return 0;
}

static void count_it(void *context, ingestion_bytes_t name, uint64_t by)
{
    (void)context, (void)name;
    counted += by;
}

static void no_gauge(void *context, ingestion_bytes_t name, double value)
{
    (void)context, (void)name, (void)value;
}

int main(void)
{
    static char line[LINE_BYTES];
    const ingestion_host_t host = {
        .struct_size = sizeof host, .abi_minor = INGESTION_ABI_MINOR, .log = no_log, .now_ms = no_time, .count = count_it,
        .gauge = no_gauge,
    };
    uint8_t words[64];
    ingestion_failure_t failure = {words, sizeof words, 0};
    void *instance = ingestion_plugin.create(&host, TEXT("{}"), &failure);
    ingestion_event_t *events = NULL;
    uint64_t events_count = 0;
    while (fgets(line, sizeof line, stdin) != NULL) {
        size_t len = strcspn(line, "\n");
        uint8_t *json = malloc(len > 0 ? len : 1);
        events = realloc(events, (events_count + 1) * sizeof *events);
        if (json == NULL || events == NULL) {
            return 2;
        }
        memcpy(json, line, len);
        events[events_count++] = (ingestion_event_t){.json = {json, len}, .kind = TEXT("pageview"), .id = {0}};
    }

    const ingestion_batch_t batch = {.struct_size = sizeof batch, .events = events, .count = events_count};
    ingestion_verdict_t *verdicts = calloc(events_count, sizeof *verdicts);
    if (verdicts == NULL || ingestion_plugin.process(instance, &batch, verdicts, &failure) != INGESTION_STATUS_OK) {
        return 2;
    }
    for (uint64_t i = 0; i < events_count; i++) {
        if (verdicts[i].outcome == INGESTION_OUTCOME_REPLACE) {
            fwrite(verdicts[i].first.data, 1, verdicts[i].first.len, stdout);
        }
        putchar('\n');
        free((void *)(uintptr_t)events[i].json.data);
    }
    ingestion_plugin.release(instance, verdicts, events_count);
    ingestion_plugin.destroy(instance);
    free(verdicts);
    free(events);
    fprintf(stderr, "%llu enriched\n", (unsigned long long)counted);
    return 0;
}
