// utm: a plugin for the ingestion engine, in C.
//
// It is given every pageview and takes the campaign apart that its `url` names:
//
//     {"type":"pageview","url":"https://shop.test/?utm_source=news&utm_medium=e%2Dmail"}
//     {"type":"pageview","url":"https://shop.test/?utm_source=news&utm_medium=e%2Dmail","utm_source":"news","utm_medium":"e-mail"}
//
// The engine has no columns of these names, so it keeps them in `properties`. A member that the sender has set itself is
// left alone. Build it with one command, as README.md says:
//
//     cc -std=c11 -O2 -shared -fPIC -I ../abi/include -o libutm.so utm.c
//
// How it reads JSON: not at all, mostly. The engine vouches for valid JSON, so it is enough to walk over the members of
// the outermost object, to look at the one that is named "url", and to know where the object ends: there the new members go.
// Every byte that was sent stays. No pointer passes the end of what was lent all the same, even if it were not JSON.
//
// It has no state, so any number of threads may be in here at once.

#include "ingestion_plugin.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

// A text that is known to the compiler, as the engine takes it.
#define TEXT(literal) ((ingestion_bytes_t){(const uint8_t *)(literal), sizeof(literal) - 1})

// What may be added to an event. A parameter's place in this list is its bit in a set of parameters.
static const char *const parameters[] = {"utm_source", "utm_medium", "utm_campaign", "utm_term", "utm_content"};
enum { PARAMETERS = sizeof parameters / sizeof parameters[0] };

// The longest of those names has 12 bytes; a longer name is none of them, so no more is kept of it.
enum { NAME_BYTES = 16 };

// A campaign is a word or two. What is longer is cut.
enum { VALUE_BYTES = 256 };

// Room for all members that may be added: a byte may become six (\u001f), and a name with its punctuation has less than 32.
enum { ADDED_BYTES = PARAMETERS * (6 * VALUE_BYTES + 32) };

// ---- The text of a JSON string ------------------------------------------------------------------------------------------

enum { END = -1 };

// Reads what is between the quotes of a JSON string as UTF-8, byte by byte, without its escapes.
struct text {
    const uint8_t *at;
    const uint8_t *end;
    // The rest of a character that was escaped, last byte first.
    uint8_t waiting[3];
    int waits;
};

static int hex_digit(int byte)
{
    if (byte >= '0' && byte <= '9') {
        return byte - '0';
    }
    if (byte >= 'a' && byte <= 'f') {
        return byte - 'a' + 10;
    }
    if (byte >= 'A' && byte <= 'F') {
        return byte - 'A' + 10;
    }
    return -1;
}

// The four digits of \uXXXX; -1 if they are none.
static int32_t four_digits(struct text *text)
{
    int32_t unit = 0;
    for (int i = 0; i < 4; i++) {
        int digit = text->at < text->end ? hex_digit(*text->at++) : -1;
        if (digit < 0) {
            return -1;
        }
        unit = unit * 16 + digit;
    }
    return unit;
}

// The first byte of the character after "\u"; the others wait.
static int escaped_character(struct text *text)
{
    int32_t character = four_digits(text);
    if (character >= 0xD800 && character < 0xDC00 && text->end - text->at >= 6 && text->at[0] == '\\' &&
        text->at[1] == 'u') {
        // The first half of a pair.
        struct text ahead = *text;
        ahead.at += 2;
        int32_t second = four_digits(&ahead);
        if (second >= 0xDC00 && second < 0xE000) {
            character = 0x10000 + (character - 0xD800) * 0x400 + (second - 0xDC00);
            *text = ahead;
        }
    }
    if (character < 0 || (character >= 0xD800 && character < 0xE000)) {
        character = 0xFFFD; // Half a pair is no character.
    }
    if (character < 0x80) {
        return (int)character;
    }
    int more = character < 0x800 ? 1 : character < 0x10000 ? 2 : 3;
    for (text->waits = 0; text->waits < more; text->waits++) {
        text->waiting[text->waits] = (uint8_t)(0x80 | (character & 0x3F));
        character >>= 6;
    }
    static const int leads[] = {0, 0xC0, 0xE0, 0xF0};
    return leads[more] | (int)character;
}

// The next byte, or END.
static int next(struct text *text)
{
    if (text->waits > 0) {
        return text->waiting[--text->waits];
    }
    if (text->at == text->end) {
        return END;
    }
    uint8_t byte = *text->at++;
    if (byte != '\\' || text->at == text->end) {
        return byte;
    }
    switch (byte = *text->at++) {
    case 'b':
        return '\b';
    case 'f':
        return '\f';
    case 'n':
        return '\n';
    case 'r':
        return '\r';
    case 't':
        return '\t';
    case 'u':
        return escaped_character(text);
    default:
        return byte; // A quote, a backslash or a slash.
    }
}

// ---- Walking over JSON --------------------------------------------------------------------------------------------------

static const uint8_t *skip_space(const uint8_t *at, const uint8_t *end)
{
    while (at < end && (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r')) {
        at++;
    }
    return at;
}

// From the opening quote of a string to behind the closing one; NULL if there is none.
static const uint8_t *skip_string(const uint8_t *at, const uint8_t *end)
{
    for (at++; at < end; at++) {
        if (*at == '"') {
            return at + 1;
        }
        if (*at == '\\' && end - at > 1) {
            at++;
        }
    }
    return NULL;
}

// From the first byte of a value to behind its last; NULL if it does not end. Counts brackets instead of recursing: how
// deep an event is nested is its sender's choice.
static const uint8_t *skip_value(const uint8_t *at, const uint8_t *end)
{
    size_t depth = 0;
    while (at < end) {
        switch (*at) {
        case '"':
            at = skip_string(at, end);
            if (at == NULL || depth == 0) {
                return at;
            }
            continue;
        case '{':
        case '[':
            depth++;
            break;
        case '}':
        case ']':
            if (depth == 0) {
                return at; // It closes what the value is in.
            }
            if (--depth == 0) {
                return at + 1;
            }
            break;
        case ',':
            if (depth == 0) {
                return at;
            }
            break;
        default:
            break;
        }
        at++;
    }
    return NULL;
}

// The text between two quotes: `first` is the opening one, `behind` lies behind the closing one.
static struct text text_of(const uint8_t *first, const uint8_t *behind)
{
    return (struct text){.at = first + 1, .end = behind - 1, .waiting = {0}, .waits = 0};
}

static int is(struct text text, const char *name)
{
    for (; *name != '\0'; name++) {
        if (next(&text) != (uint8_t)*name) {
            return 0;
        }
    }
    return next(&text) == END;
}

// What an event has that matters here.
struct found {
    // The text of `url`.
    struct text url;
    int has_url;
    // The parameters that the sender has set itself.
    unsigned own;
    // The closing brace.
    const uint8_t *brace;
};

// Walks over the members of the event. 0 if it is not an object.
static int look_at(ingestion_bytes_t json, struct found *found)
{
    const uint8_t *at = json.data;
    const uint8_t *end = json.data + json.len;
    *found = (struct found){.has_url = 0, .own = 0, .brace = NULL};
    at = skip_space(at, end);
    if (at == end || *at != '{') {
        return 0;
    }
    at = skip_space(at + 1, end);
    while (at < end && *at == '"') {
        const uint8_t *first = at;
        at = skip_string(at, end);
        if (at == NULL) {
            return 0;
        }
        struct text name = text_of(first, at);
        at = skip_space(at, end);
        if (at == end || *at != ':') {
            return 0;
        }
        const uint8_t *value = skip_space(at + 1, end);
        at = skip_value(value, end);
        if (at == NULL) {
            return 0;
        }
        if (is(name, "url") && *value == '"') {
            found->url = text_of(value, at);
            found->has_url = 1;
        }
        for (unsigned i = 0; i < PARAMETERS; i++) {
            if (is(name, parameters[i])) {
                found->own |= 1U << i;
            }
        }
        at = skip_space(at, end);
        if (at == end || *at != ',') {
            break;
        }
        at = skip_space(at + 1, end);
    }
    if (at == end || *at != '}') {
        return 0;
    }
    found->brace = at;
    return 1;
}

// ---- The query of a URL -------------------------------------------------------------------------------------------------

// A name or a value, decoded, as much of it as there is room for.
struct part {
    uint8_t bytes[VALUE_BYTES];
    size_t len;
    size_t capacity;
    int is_cut;
};

// Reads a name (up to `=`) or a value, as forms encode them: `+` is a space, %XX a byte; a `%` that is followed by
// something else stands for itself. Returns what it ended with: `=`, `&`, or END, which a `#` is too.
static int read_part(struct text *url, int is_name, struct part *part)
{
    part->len = 0;
    part->capacity = is_name ? NAME_BYTES : VALUE_BYTES;
    part->is_cut = 0;
    for (;;) {
        int byte = next(url);
        if (byte == END || byte == '#') {
            return END;
        }
        if (byte == '&' || (byte == '=' && is_name)) {
            return byte;
        }
        if (byte == '+') {
            byte = ' ';
        } else if (byte == '%') {
            struct text ahead = *url;
            int high = hex_digit(next(&ahead));
            int low = high < 0 ? -1 : hex_digit(next(&ahead));
            if (low >= 0) {
                byte = high * 16 + low;
                *url = ahead;
            }
        }
        if (part->len < part->capacity) {
            part->bytes[part->len++] = (uint8_t)byte;
        } else {
            part->is_cut = 1;
        }
    }
}

// Length of the UTF-8 character at `at`; 0 if there is none.
static size_t character(const uint8_t *at, size_t room)
{
    // The second byte has a narrower range after some first bytes: nothing is longer than it must be, nothing is half of a
    // pair, nothing lies beyond U+10FFFF.
    uint8_t low = 0x80, high = 0xBF;
    size_t len;
    if (at[0] < 0x80) {
        return 1;
    } else if (at[0] >= 0xC2 && at[0] <= 0xDF) {
        len = 2;
    } else if (at[0] >= 0xE0 && at[0] <= 0xEF) {
        len = 3;
        low = at[0] == 0xE0 ? 0xA0 : low;
        high = at[0] == 0xED ? 0x9F : high;
    } else if (at[0] >= 0xF0 && at[0] <= 0xF4) {
        len = 4;
        low = at[0] == 0xF0 ? 0x90 : low;
        high = at[0] == 0xF4 ? 0x8F : high;
    } else {
        return 0;
    }
    if (room < len || at[1] < low || at[1] > high) {
        return 0;
    }
    for (size_t i = 2; i < len; i++) {
        if ((at[i] & 0xC0) != 0x80) {
            return 0;
        }
    }
    return len;
}

// Members that are to be added.
struct added {
    uint8_t bytes[ADDED_BYTES];
    size_t len;
    unsigned which;
};

static void put(struct added *added, const void *bytes, size_t len)
{
    // ADDED_BYTES is enough for everything; this is for the day on which somebody miscounts.
    if (sizeof added->bytes - added->len >= len) {
        memcpy(added->bytes + added->len, bytes, len);
        added->len += len;
    }
}

// Adds `,"name":"value"`. A value is what somebody has put into a link: whatever it is, valid JSON in UTF-8 comes out.
static void add(struct added *added, const char *name, const struct part *value)
{
    static const char digits[] = "0123456789abcdef";
    size_t len = value->len;
    if (value->is_cut) {
        // Not in the middle of a character.
        while (len > 0 && (value->bytes[len - 1] & 0xC0) == 0x80) {
            len--;
        }
        if (len > 0 && value->bytes[len - 1] >= 0xC0) {
            len--;
        }
    }
    put(added, ",\"", 2);
    put(added, name, strlen(name));
    put(added, "\":\"", 3);
    for (size_t i = 0; i < len;) {
        uint8_t byte = value->bytes[i];
        size_t size = character(value->bytes + i, len - i);
        if (size == 0) {
            put(added, "\xEF\xBF\xBD", 3); // U+FFFD, for a byte that is no text.
            size = 1;
        } else if (byte == '"' || byte == '\\') {
            put(added, "\\", 1);
            put(added, &byte, 1);
        } else if (byte < 0x20) {
            char escape[6] = {'\\', 'u', '0', '0', digits[byte >> 4], digits[byte & 15]};
            put(added, escape, sizeof escape);
        } else {
            put(added, value->bytes + i, size);
        }
        i += size;
    }
    put(added, "\"", 1);
}

// Collects the campaign parameters of a URL, but for those of `own`. The first of a name counts, unless it is empty.
static void read_query(struct text url, unsigned own, struct added *added)
{
    struct part part;
    int byte;
    added->len = 0;
    added->which = 0;
    do {
        byte = next(&url);
    } while (byte != '?' && byte != '#' && byte != END);
    if (byte != '?') {
        return;
    }
    do {
        unsigned which = PARAMETERS;
        byte = read_part(&url, 1, &part);
        for (unsigned i = 0; i < PARAMETERS; i++) {
            if (part.len == strlen(parameters[i]) && memcmp(part.bytes, parameters[i], part.len) == 0) {
                which = i;
            }
        }
        if (byte != '=') {
            continue;
        }
        byte = read_part(&url, 0, &part);
        if (which < PARAMETERS && part.len > 0 && ((own | added->which) & 1U << which) == 0) {
            add(added, parameters[which], &part);
            added->which |= 1U << which;
        }
    } while (byte != END);
}

// ---- The contract -------------------------------------------------------------------------------------------------------

static void fail(ingestion_failure_t *failure, ingestion_bytes_t words)
{
    uint64_t len = words.len < failure->capacity ? words.len : failure->capacity;
    memcpy(failure->data, words.data, len);
    failure->len = len;
}

static ingestion_bytes_t describe(void)
{
    return TEXT("{"
                "\"name\":\"utm\",\"version\":\"1.0.0\","
                "\"description\":\"Takes the campaign parameters of a pageview's url apart\","
                "\"enriches\":[\"pageview\"],"
                "\"examples\":["
                "{\"type\":\"pageview\",\"url\":\"https://shop.test/?utm_source=news&utm_campaign=spring%20sale#top\"},"
                "{\"type\":\"pageview\",\"path\":\"/\"}"
                "]}");
}

// The instance is the host: there is nothing else to remember.
static void *create(const ingestion_host_t *host, ingestion_bytes_t config, ingestion_failure_t *failure)
{
    const uint8_t *end = config.data + config.len;
    const uint8_t *at = skip_space(config.data, end);
    if (at < end && *at == '{') {
        at = skip_space(at + 1, end);
    }
    if (at == end || *at != '}') {
        fail(failure, TEXT("there is nothing to configure: remove [plugins.config.utm]"));
        return NULL;
    }
    return (void *)(uintptr_t)host;
}

// An engine of contract 1.0 has no counters. The size of its struct says so; its version would too.
static void count(const ingestion_host_t *host, ingestion_bytes_t name, uint64_t by)
{
    if (by > 0 && host->struct_size >= offsetof(ingestion_host_t, count) + sizeof host->count) {
        host->count(host->context, name, by);
    }
}

// Takes an event whose `url` names a campaign and puts a longer one in its place. 0 if there is no memory.
static int enrich(const ingestion_event_t *event, ingestion_verdict_t *verdict, uint64_t *enriched)
{
    struct found found;
    struct added added;
    verdict->outcome = INGESTION_OUTCOME_KEEP;
    if (!look_at(event->json, &found) || !found.has_url) {
        return 1;
    }
    read_query(found.url, found.own, &added);
    if (added.which == 0) {
        return 1;
    }

    size_t before = (size_t)(found.brace - event->json.data);
    size_t after = event->json.len - before;
    uint8_t *json = malloc(before + added.len + after);
    if (json == NULL) {
        return 0;
    }
    memcpy(json, event->json.data, before);
    memcpy(json + before, added.bytes, added.len);
    memcpy(json + before + added.len, found.brace, after);
    verdict->outcome = INGESTION_OUTCOME_REPLACE;
    verdict->first = (ingestion_bytes_t){json, before + added.len + after};
    verdict->owner = json;
    ++*enriched;
    return 1;
}

static ingestion_status_t process(void *instance, const ingestion_batch_t *batch, ingestion_verdict_t *verdicts,
                                  ingestion_failure_t *failure)
{
    const ingestion_host_t *host = instance;
    uint64_t enriched = 0;
    for (uint64_t i = 0; i < batch->count; i++) {
        if (!enrich(&batch->events[i], &verdicts[i], &enriched)) {
            // What was allocated before stays where it is: `release` is called all the same.
            fail(failure, TEXT("out of memory"));
            return INGESTION_STATUS_FAILED;
        }
    }
    count(host, TEXT("events_enriched"), enriched);
    return INGESTION_STATUS_OK;
}

static void release(void *instance, ingestion_verdict_t *verdicts, uint64_t count)
{
    (void)instance;
    for (uint64_t i = 0; i < count; i++) {
        free(verdicts[i].owner); // Null where nothing was allocated.
        verdicts[i].owner = NULL;
    }
}

static void destroy(void *instance)
{
    (void)instance;
}

const ingestion_plugin_t ingestion_plugin = {
    .header = INGESTION_HEADER,
    .describe = describe,
    .create = create,
    .process = process,
    .release = release,
    .destroy = destroy,
    .health = NULL, // It can always work.
};
