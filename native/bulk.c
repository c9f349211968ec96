// SPDX-License-Identifier: Apache-2.0
//
// The functions of the object `native` that are no system calls: an interpreter is too slow for them. In TypeScript each
// would cost more than a tenth of all that a container start may cost.

#define _GNU_SOURCE
#include "bulk.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define countof(a) (sizeof(a) / sizeof((a)[0]))

// The text of the last jsonEnd: one text is asked for many of its places, and to read it for each would take the square
// of its length. It is held, so that no other text can come to lie where it is.
static struct {
    int held;
    JSValue value;
    const char *chars;
    size_t length;
    int ascii;
} scanned;

// 0, or -1 with an exception pending.
static int scan_text(JSContext *ctx, JSValueConst value)
{
    int64_t units;

    if (scanned.held && JS_IsString(value) && JS_VALUE_GET_TAG(value) == JS_VALUE_GET_TAG(scanned.value) &&
        JS_VALUE_GET_PTR(value) == JS_VALUE_GET_PTR(scanned.value))
        return 0;
    if (scanned.held) {
        scanned.held = 0;
        JS_FreeCString(ctx, scanned.chars);
        JS_FreeValue(ctx, scanned.value);
    }
    if (JS_GetLength(ctx, value, &units) || !(scanned.chars = JS_ToCStringLen(ctx, &scanned.length, value)))
        return -1;
    scanned.ascii = (int64_t)scanned.length == units;
    scanned.value = JS_DupValue(ctx, value);
    scanned.held = 1;
    return 0;
}

static int is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

// Where the JSON value that starts at `start` of the scanned text ends, or -1 where the text ends before. It was parsed
// before: only brackets, braces and strings are looked at.
static int64_t value_end(int64_t start)
{
    int64_t depth = 0;
    int in_string = 0;

    for (size_t i = (size_t)start; i < scanned.length; i++) {
        char c = scanned.chars[i];

        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = 0;
        } else if (c == '"') {
            in_string = 1;
        } else if (c == '{' || c == '[') {
            depth++;
        } else if (c == '}' || c == ']') {
            // Of what encloses a number or a literal, which ends before it.
            if (--depth < 0)
                return (int64_t)i;
        } else if (depth > 0 || !(c == ',' || is_space(c))) {
            continue;
        } else {
            return (int64_t)i;
        }
        if (depth == 0 && !in_string)
            return (int64_t)i + 1;
    }
    return -1;
}

// jsonEnd(text, start): where the object, array or string that starts there ends; -1 where the text is not ASCII (its
// places would not be those of the UTF-16 string), or ends before the value does.
JSValue sluice_json_end(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    int64_t start;

    (void)this_val;
    (void)argc;
    if (JS_ToInt64(ctx, &start, argv[1]) || scan_text(ctx, argv[0]))
        return JS_EXCEPTION;
    return JS_NewInt64(ctx, scanned.ascii && start >= 0 ? value_end(start) : -1);
}

static int64_t behind_space(int64_t at)
{
    while ((size_t)at < scanned.length && is_space(scanned.chars[at]))
        at++;
    return at;
}

struct places {
    JSValue *list;
    int count, room;
};

static int add_place(JSRuntime *rt, struct places *p, int64_t at)
{
    if (p->count == p->room) {
        int room = p->room ? 2 * p->room : 64;
        JSValue *list = js_realloc_rt(rt, p->list, (size_t)room * sizeof *list);

        if (!list)
            return -1;
        p->list = list;
        p->room = room;
    }
    p->list[p->count++] = JS_MKVAL(JS_TAG_INT, (int32_t)at); // no string is longer
    return 0;
}

// Adds the value at `at`, and gives where it ends; -1 where it does not.
static int64_t add_value(JSRuntime *rt, struct places *p, int64_t at)
{
    int64_t end = value_end(at);

    return end < 0 || add_place(rt, p, at) || add_place(rt, p, end) ? -1 : end;
}

// jsonParts(text, start): of the object that starts there, start and end of each member's key and value; of an array, of
// each element; and last, where it ends. undefined where jsonEnd gives -1, or there is neither.
JSValue sluice_json_parts(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    JSRuntime *rt = JS_GetRuntime(ctx);
    struct places p = {0};
    int64_t at;
    int is_object;
    JSValue result = JS_UNDEFINED;

    (void)this_val;
    (void)argc;
    if (JS_ToInt64(ctx, &at, argv[1]) || scan_text(ctx, argv[0]))
        return JS_EXCEPTION;
    if (!scanned.ascii || at < 0 || (size_t)at >= scanned.length || !strchr("{[", scanned.chars[at]))
        return JS_UNDEFINED;
    is_object = scanned.chars[at] == '{';
    at = behind_space(at + 1);
    while ((size_t)at < scanned.length && scanned.chars[at] != (is_object ? '}' : ']')) {
        if (is_object) {
            at = add_value(rt, &p, at);
            if (at < 0)
                break;
            at = behind_space(behind_space(at) + 1); // the colon
        }
        at = add_value(rt, &p, at);
        if (at < 0)
            break;
        at = behind_space(at);
        if ((size_t)at < scanned.length && scanned.chars[at] == ',')
            at = behind_space(at + 1);
    }
    if (at >= 0 && (size_t)at < scanned.length && !add_place(rt, &p, at + 1))
        result = JS_NewArrayFrom(ctx, p.count, p.list);
    js_free_rt(rt, p.list);
    return result;
}

static uint32_t get_le32(const unsigned char *at)
{
    return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static void put_le32(unsigned char *at, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        at[i] = (unsigned char)(value >> 8 * i);
}

#define CACHE_HEADER 48
#define CACHE_ENTRY 24
#define CACHE_NAME_MAX 256

// A library for a loader's cache.
struct library {
    const char *path, *name;
    size_t length; // of the path
    uint32_t flags;
    int64_t number;
};

// Libraries of one name, and which entries have that name.
struct group {
    const struct library *libraries;
    size_t count;
    int64_t from, to;
};

// A loader's cache from its header on.
struct cache {
    const unsigned char *bytes;
    size_t size;
    int64_t count;
};

// The order of names in the cache, where the greatest comes first (glibc's _dl_cache_libcmp): digits by their number and
// behind everything else.
static int compare_names(const char *a, const char *a_end, const char *b, const char *b_end)
{
    while (a < a_end && b < b_end) {
        int a_number = *a >= '0' && *a <= '9', b_number = *b >= '0' && *b <= '9';
        const char *a_first, *b_first;

        if (a_number != b_number)
            return a_number - b_number;
        if (!a_number) {
            if (*a != *b)
                return (unsigned char)*a - (unsigned char)*b;
            a++;
            b++;
            continue;
        }
        while (a < a_end && *a == '0')
            a++;
        while (b < b_end && *b == '0')
            b++;
        for (a_first = a; a < a_end && *a >= '0' && *a <= '9';)
            a++;
        for (b_first = b; b < b_end && *b >= '0' && *b <= '9';)
            b++;
        if (a - a_first != b - b_first)
            return a - a_first < b - b_first ? -1 : 1;
        for (; a_first < a; a_first++, b_first++)
            if (*a_first != *b_first)
                return *a_first - *b_first;
    }
    return (a < a_end) - (b < b_end);
}

// In the cache's order; those of one name by their flags, and then as they were given.
static int compare_libraries(const void *one, const void *other)
{
    const struct library *a = one, *b = other;
    int names = compare_names(b->name, b->path + b->length, a->name, a->path + a->length);

    if (names)
        return names;
    if (a->flags != b->flags)
        return a->flags < b->flags ? 1 : -1;
    return a->number < b->number ? -1 : 1;
}

static const unsigned char *entry_at(const struct cache *cache, int64_t number)
{
    return cache->bytes + CACHE_HEADER + CACHE_ENTRY * number;
}

// How an entry's name compares with a library's.
static int compare_entry(const struct cache *cache, int64_t number, const struct library *library)
{
    size_t at = get_le32(entry_at(cache, number) + 4);
    size_t left = at < cache->size ? cache->size - at : 0;
    const char *name = (const char *)cache->bytes + (left ? at : 0);

    return compare_names(name, name + strnlen(name, left < CACHE_NAME_MAX ? left : CACHE_NAME_MAX), library->name,
                         library->path + library->length);
}

static int is_library(const struct cache *cache, int64_t number, const struct library *library)
{
    const unsigned char *entry = entry_at(cache, number);
    size_t path = get_le32(entry + 8);

    return get_le32(entry) == library->flags && !get_le32(entry + 16) && !get_le32(entry + 20) && path < cache->size &&
           library->length < cache->size - path && !memcmp(cache->bytes + path, library->path, library->length + 1);
}

static int is_of_group(const struct cache *cache, int64_t number, const struct group *group)
{
    for (size_t i = 0; i < group->count; i++)
        if (is_library(cache, number, &group->libraries[i]))
            return 1;
    return 0;
}

// The first entry from `start` on whose name does not sort before the library's. It looks near the start first.
static int64_t first_entry(const struct cache *cache, const struct library *library, int64_t start)
{
    int64_t low = start, high = start;

    for (int64_t step = 1; high < cache->count && compare_entry(cache, high, library) > 0; step *= 2) {
        low = high + 1;
        high += step;
    }
    if (high > cache->count)
        high = cache->count;
    while (low < high) {
        int64_t middle = (low + high) / 2;

        if (compare_entry(cache, middle, library) > 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

// Puts sorted libraries into groups, without those whose entries are there. Their number.
static size_t group_libraries(const struct cache *cache, const struct library *list, size_t count, struct group *groups)
{
    size_t used = 0;
    int64_t searched = 0;

    for (size_t i = 0, next; i < count; i = next) {
        struct group group = {&list[i], 1, first_entry(cache, &list[i], searched), 0};
        int there;

        for (next = i + 1; next < count && !compare_names(list[next].name, list[next].path + list[next].length,
                                                          list[i].name, list[i].path + list[i].length);)
            next++;
        group.count = next - i;
        for (group.to = group.from; group.to < cache->count && !compare_entry(cache, group.to, &list[i]);)
            group.to++;
        searched = group.to;
        there = (int64_t)group.count <= group.to - group.from;
        for (size_t k = 0; k < group.count && there; k++)
            there = is_library(cache, group.from + (int64_t)k, &group.libraries[k]);
        if (!there)
            groups[used++] = group;
    }
    return used;
}

static unsigned char *put_entry(unsigned char *at, uint32_t flags, size_t name, size_t path)
{
    memset(at, 0, CACHE_ENTRY);
    put_le32(at, flags);
    put_le32(at + 4, (uint32_t)name);
    put_le32(at + 8, (uint32_t)path);
    return at + CACHE_ENTRY;
}

// Entries for strings that have moved. Where they end, or NULL where one's are not behind all entries.
static unsigned char *put_moved(unsigned char *at, const struct cache *cache, int64_t from, int64_t to, size_t moved)
{
    size_t low = (size_t)(entry_at(cache, cache->count) - cache->bytes);

    for (int64_t i = from; i < to; i++, at += CACHE_ENTRY) {
        size_t name = get_le32(entry_at(cache, i) + 4), path = get_le32(entry_at(cache, i) + 8);

        if (name < low || path < low || name >= cache->size || path >= cache->size)
            return NULL;
        memcpy(at, entry_at(cache, i), CACHE_ENTRY);
        put_le32(at + 4, (uint32_t)(name + moved));
        put_le32(at + 8, (uint32_t)(path + moved));
    }
    return at;
}

// [count, bytes of strings, text]; undefined for a cache that is none.
static JSValue add_groups(JSContext *ctx, const struct cache *cache, const struct group *groups, size_t used)
{
    int64_t count = cache->count, copied = 0;
    size_t strings = 0, string, moved;
    unsigned char *text, *at, *end;
    JSValue result = JS_UNDEFINED, parts[3];

    for (size_t g = 0; g < used; g++) {
        for (int64_t i = groups[g].from; i < groups[g].to; i++)
            count -= is_of_group(cache, i, &groups[g]);
        count += (int64_t)groups[g].count;
        for (size_t i = 0; i < groups[g].count; i++)
            strings += groups[g].libraries[i].length + 1;
    }
    strings = (strings + 3) / 4 * 4; // the extensions are aligned to four bytes
    moved = (size_t)(CACHE_ENTRY * (count - cache->count)) + strings;
    text = js_calloc(ctx, 1, CACHE_ENTRY * (size_t)count + strings + 1);
    if (!text)
        return JS_EXCEPTION;
    at = text;
    end = text + CACHE_ENTRY * count;
    string = 0;
    for (size_t g = 0; g < used && at; g++) {
        const struct group *group = &groups[g];

        at = put_moved(at, cache, copied, group->from, moved);
        for (size_t i = 0; i < group->count && at; i++) {
            const struct library *library = &group->libraries[i];
            size_t path = CACHE_HEADER + CACHE_ENTRY * (size_t)count + string;

            at = put_entry(at, library->flags, path + (size_t)(library->name - library->path), path);
            memcpy(end + string, library->path, library->length + 1);
            string += library->length + 1;
        }
        copied = group->to;
        for (int64_t i = group->from; i < group->to && at; i++) {
            unsigned char entry[CACHE_ENTRY];

            if (!is_of_group(cache, i, group))
                at = put_moved(at, cache, i, i + 1, moved);
            else if (!put_moved(entry, cache, i, i + 1, moved))
                at = NULL;
        }
    }
    if (used == 0 || (at && put_moved(at, cache, copied, cache->count, moved))) {
        parts[0] = JS_NewInt64(ctx, count);
        parts[1] = JS_NewInt64(ctx, (int64_t)strings);
        parts[2] = sluice_byte_string(ctx, text, used ? CACHE_ENTRY * (size_t)count + strings : 0);
        result = JS_NewArrayFrom(ctx, 3, parts);
    }
    js_free(ctx, text);
    return result;
}

// addCached(bytes, count, [{path, flags}, ...]): [count, bytes of strings, text], as Sys.addCached; undefined for a cache
// that is none
JSValue sluice_add_cached(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    struct cache cache;
    int64_t wanted, taken = 0;
    size_t length;
    ssize_t size;
    const char *text;
    unsigned char *bytes = NULL;
    struct library *list = NULL;
    struct group *groups = NULL;
    JSValue result = JS_EXCEPTION;

    (void)this_val;
    (void)argc;
    if (JS_ToInt64(ctx, &cache.count, argv[1]) || JS_GetLength(ctx, argv[2], &wanted) ||
        !(text = JS_ToCStringLen(ctx, &length, argv[0])))
        return JS_EXCEPTION;
    bytes = js_malloc(ctx, length + 1);
    list = js_malloc(ctx, (size_t)(wanted + 1) * sizeof *list);
    groups = js_malloc(ctx, (size_t)(wanted + 1) * sizeof *groups);
    if (!bytes || !list || !groups)
        goto done;
    memcpy(bytes, text, length);
    for (; taken < wanted; taken++) {
        struct library *library = &list[taken];
        JSValue item = JS_GetPropertyInt64(ctx, argv[2], taken);
        JSValue path = JS_GetPropertyStr(ctx, item, "path"), flags = JS_GetPropertyStr(ctx, item, "flags");
        int bad = JS_ToUint32(ctx, &library->flags, flags) || !(library->path = sluice_text_arg(ctx, path));

        JS_FreeValue(ctx, flags);
        JS_FreeValue(ctx, path);
        JS_FreeValue(ctx, item);
        if (bad)
            goto done;
        library->name = strrchr(library->path, '/');
        library->name = library->name ? library->name + 1 : library->path;
        library->length = strlen(library->path);
        library->number = taken;
    }
    size = sluice_bytes_of((char *)bytes, length);
    if (size < CACHE_HEADER || cache.count < 0 || cache.count > (size - CACHE_HEADER) / CACHE_ENTRY) {
        result = JS_UNDEFINED;
    } else {
        size_t used;

        cache.bytes = bytes;
        cache.size = (size_t)size;
        qsort(list, (size_t)wanted, sizeof *list, compare_libraries);
        used = group_libraries(&cache, list, (size_t)wanted, groups);
        result = add_groups(ctx, &cache, groups, used);
    }
done:
    while (taken > 0)
        JS_FreeCString(ctx, list[--taken].path);
    js_free(ctx, groups);
    js_free(ctx, list);
    js_free(ctx, bytes);
    JS_FreeCString(ctx, text);
    return result;
}

// SHA-256 (FIPS 180-4).
struct sha256 {
    uint32_t state[8];
    uint8_t block[64];
};

static const uint32_t sha256_round[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotate_right(uint32_t x, int by)
{
    return x >> by | x << (32 - by);
}

static void sha256_block(struct sha256 *h)
{
    uint32_t w[64], *s = h->state, v[8];

    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)h->block[4 * i] << 24 | (uint32_t)h->block[4 * i + 1] << 16 |
               (uint32_t)h->block[4 * i + 2] << 8 | h->block[4 * i + 3];
    for (int i = 16; i < 64; i++)
        w[i] = w[i - 16] + w[i - 7] +
               (rotate_right(w[i - 15], 7) ^ rotate_right(w[i - 15], 18) ^ w[i - 15] >> 3) +
               (rotate_right(w[i - 2], 17) ^ rotate_right(w[i - 2], 19) ^ w[i - 2] >> 10);
    memcpy(v, s, sizeof v);
    // The working variables a to h move by one place a round; eight rounds a turn let each keep its place instead.
    for (int i = 0; i < 64; i += 8) {
#define ROUND(n, a, b, c, d, e, f, g, h)                                                                               \
    h += (rotate_right(e, 6) ^ rotate_right(e, 11) ^ rotate_right(e, 25)) + (g ^ (e & (f ^ g))) +                      \
         sha256_round[i + n] + w[i + n];                                                                               \
    d += h;                                                                                                            \
    h += (rotate_right(a, 2) ^ rotate_right(a, 13) ^ rotate_right(a, 22)) + ((a & b) | (c & (a | b)));
        ROUND(0, v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7])
        ROUND(1, v[7], v[0], v[1], v[2], v[3], v[4], v[5], v[6])
        ROUND(2, v[6], v[7], v[0], v[1], v[2], v[3], v[4], v[5])
        ROUND(3, v[5], v[6], v[7], v[0], v[1], v[2], v[3], v[4])
        ROUND(4, v[4], v[5], v[6], v[7], v[0], v[1], v[2], v[3])
        ROUND(5, v[3], v[4], v[5], v[6], v[7], v[0], v[1], v[2])
        ROUND(6, v[2], v[3], v[4], v[5], v[6], v[7], v[0], v[1])
        ROUND(7, v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[0])
#undef ROUND
    }
    for (int i = 0; i < 8; i++)
        s[i] += v[i];
}

// sha256(text): 64 hexadecimal digits, over the text's UTF-8
JSValue sluice_sha256(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    struct sha256 h = {.state = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab,
                                 0x5be0cd19}};
    size_t length, rest;
    const char *data = JS_ToCStringLen(ctx, &length, argv[0]);
    char hex[65];

    (void)this_val;
    (void)argc;
    if (!data)
        return JS_EXCEPTION;
    for (size_t i = 0; i + 64 <= length; i += 64) {
        memcpy(h.block, data + i, 64);
        sha256_block(&h);
    }
    rest = length % 64;
    memset(h.block, 0, sizeof h.block);
    memcpy(h.block, data + length - rest, rest);
    JS_FreeCString(ctx, data);
    h.block[rest] = 0x80;
    if (rest >= 56) {
        sha256_block(&h);
        memset(h.block, 0, sizeof h.block);
    }
    for (int i = 0; i < 8; i++)
        h.block[63 - i] = (uint8_t)((uint64_t)length * 8 >> 8 * i);
    sha256_block(&h);
    for (int i = 0; i < 8; i++)
        snprintf(hex + 8 * i, 9, "%08x", h.state[i]);
    return JS_NewStringLen(ctx, hex, 64);
}
