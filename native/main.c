// SPDX-License-Identifier: Apache-2.0
//
// The executable `sluice`: picks one of the bundles that are linked in, and runs it.

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "bundles.h"
#include "engine.h"
#include "memory.h"

static const struct sluice_bundle *find_bundle(const char *name)
{
    for (size_t i = 0; i < sluice_bundle_count; i++)
        if (!strcmp(sluice_bundles[i].name, name))
            return &sluice_bundles[i];
    return NULL;
}

// Runs a bundle, and gives the object of its exports, which it leaves in the global `variable`.
static JSValue load(JSContext *ctx, const struct sluice_bundle *bundle, const char *variable)
{
    JSValue global, exports;

    if (sluice_engine_run(ctx, bundle->start, (size_t)(bundle->end - bundle->start)))
        return JS_EXCEPTION;
    global = JS_GetGlobalObject(ctx);
    exports = JS_GetPropertyStr(ctx, global, variable);
    JS_FreeValue(ctx, global);
    return exports;
}

// native.part(name): the functions of the bundle `part:<name>`.
static JSValue load_part(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    char name[64];
    const char *wanted = JS_ToCString(ctx, argv[0]);
    const struct sluice_bundle *bundle;

    (void)this_val;
    (void)argc;
    if (!wanted)
        return JS_EXCEPTION;
    snprintf(name, sizeof name, "part:%s", wanted);
    JS_FreeCString(ctx, wanted);
    bundle = find_bundle(name);
    return bundle ? load(ctx, bundle, "part") : JS_ThrowReferenceError(ctx, "no bundle %s", name);
}

static int add_loader(JSContext *ctx)
{
    JSValue global = JS_GetGlobalObject(ctx);
    JSValue native = JS_GetPropertyStr(ctx, global, "native");
    int failed = JS_SetPropertyStr(ctx, native, "part", JS_NewCFunction(ctx, load_part, "part", 1)) < 0;

    JS_FreeValue(ctx, native);
    JS_FreeValue(ctx, global);
    return failed ? -1 : 0;
}

static const char COMMANDS[] = "door:cli";

// A door has its own bundle, `door:<name>`, and is called as `sluice <name> ...` or under the name `sluice-<name>`.
// Everything else is the command line for people, `door:cli`.
static const struct sluice_bundle *choose_bundle(int argc, char **argv)
{
    const char *called = argc > 0 ? strrchr(argv[0], '/') : NULL;
    const struct sluice_bundle *bundle = NULL;
    char name[64];

    called = called ? called + 1 : argc > 0 ? argv[0] : "";
    if (!strncmp(called, "sluice-", 7)) {
        snprintf(name, sizeof name, "door:%s", called + 7);
        bundle = find_bundle(name);
    }
    if (!bundle && argc > 1) {
        snprintf(name, sizeof name, "door:%s", argv[1]);
        bundle = find_bundle(name);
    }
    return bundle ? bundle : find_bundle(COMMANDS);
}

#ifdef SLUICE_SNAPSHOT
// More than a call makes.
#define ROOM 1000

// Lets the engine make its tables of names and of objects' shapes as large as a call needs them: to make them larger, it
// reads all names and shapes.
static int make_room(JSContext *ctx)
{
    JSValue list = JS_NewArray(ctx);
    int failed = JS_IsException(list);

    for (uint32_t i = 0; i < ROOM && !failed; i++) {
        JSValue object = JS_NewObject(ctx);
        char name[16];

        snprintf(name, sizeof name, "room%u", (unsigned)i);
        failed = JS_SetPropertyStr(ctx, object, name, JS_UNDEFINED) < 0 || JS_SetPropertyUint32(ctx, list, i, object) < 0;
    }
    JS_FreeValue(ctx, list);
    return failed ? -1 : 0;
}

// The build's step: an engine that has loaded every door of a container's start goes to standard output. `order`, if there
// is one, is a file for sluice_snapshot_order.
static int write_snapshot(const char *order)
{
    JSContext *ctx;
    JSValue doors;

    if (order && sluice_snapshot_order(order)) {
        fprintf(stderr, "snapshot: %s cannot be read\n", order);
        return 1;
    }
    ctx = sluice_engine_new(&sluice_memory, 0);
    if (!ctx || add_loader(ctx)) {
        fprintf(stderr, "snapshot: no room for the engine: enlarge SNAPSHOT in memory.c, unless the order is another program's\n");
        return 1;
    }
    doors = JS_NewObject(ctx);
    for (size_t i = 0; i < sluice_bundle_count; i++) {
        const struct sluice_bundle *bundle = &sluice_bundles[i];
        JSValue door;

        if (strncmp(bundle->name, "door:", 5) || !strcmp(bundle->name, COMMANDS))
            continue;
        door = load(ctx, bundle, "door");
        if (JS_IsException(door) || JS_SetPropertyStr(ctx, doors, bundle->name, door) < 0) {
            fprintf(stderr, "snapshot: %s: is SNAPSHOT in memory.c too small?\n", bundle->name);
            sluice_engine_report(ctx);
            return 1;
        }
    }
    if (make_room(ctx)) {
        fprintf(stderr, "snapshot: no room for the engine's tables\n");
        return 1;
    }
    return sluice_snapshot_write(ctx, doors) ? 1 : 0;
}
#endif

// The exports of the chosen door.
static JSValue open_door(JSContext *ctx, const struct sluice_bundle *bundle)
{
    JSValueConst doors = sluice_snapshot_doors();
    JSValue door = JS_IsObject(doors) ? JS_GetPropertyStr(ctx, doors, bundle->name) : JS_UNDEFINED;

    return JS_IsUndefined(door) ? load(ctx, bundle, "door") : door;
}

static int run(JSContext *ctx, const struct sluice_bundle *bundle)
{
    JSValue door = open_door(ctx, bundle);
    JSValue main = JS_IsException(door) ? JS_EXCEPTION : JS_GetPropertyStr(ctx, door, "main");
    JSValue code = JS_IsException(main) ? JS_EXCEPTION : JS_Call(ctx, main, JS_UNDEFINED, 0, NULL);

    JS_FreeValue(ctx, main);
    JS_FreeValue(ctx, door);
    if (JS_IsException(code))
        sluice_engine_report(ctx);
    return sluice_engine_exit_code(ctx, code);
}

int main(int argc, char **argv)
{
    const struct sluice_bundle *bundle = choose_bundle(argc, argv);
    JSContext *ctx = sluice_snapshot_context();
    int code;

#ifdef SLUICE_SNAPSHOT
    if (!ctx)
        return write_snapshot(argc > 1 ? argv[1] : NULL);
#else
    ctx = sluice_engine_new(NULL, 0);
    if (ctx && add_loader(ctx))
        ctx = NULL;
#endif
    if (!ctx || !bundle || sluice_engine_start(ctx, argc, argv)) {
        static const char text[] = "sluice: E_INTERNAL: out of memory at start\n";

        return write(STDERR_FILENO, text, sizeof text - 1) < 0 ? 71 : 70;
    }
    code = run(ctx, bundle);
#ifdef SLUICE_FREE_AT_EXIT
    sluice_engine_free(ctx);
#endif
    return code;
}
