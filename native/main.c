// SPDX-License-Identifier: Apache-2.0
//
// The executable `sluice`: picks one of the bundles that are linked in, and runs it.

#include <malloc.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "bundles.h"
#include "engine.h"

static const struct sluice_bundle *find_bundle(const char *name)
{
    for (size_t i = 0; i < sluice_bundle_count; i++)
        if (!strcmp(sluice_bundles[i].name, name))
            return &sluice_bundles[i];
    return NULL;
}

// native.part(name): runs the bundle `part:<name>`, which leaves its functions in the global `part`, and gives those.
static JSValue load_part(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    char name[64];
    const char *wanted = JS_ToCString(ctx, argv[0]);
    const struct sluice_bundle *bundle;
    JSValue global, part;

    (void)this_val;
    (void)argc;
    if (!wanted)
        return JS_EXCEPTION;
    snprintf(name, sizeof name, "part:%s", wanted);
    JS_FreeCString(ctx, wanted);
    bundle = find_bundle(name);
    if (!bundle)
        return JS_ThrowReferenceError(ctx, "no bundle %s", name);
    if (sluice_engine_run(ctx, bundle->start, (size_t)(bundle->end - bundle->start)))
        return JS_EXCEPTION;
    global = JS_GetGlobalObject(ctx);
    part = JS_GetPropertyStr(ctx, global, "part");
    JS_FreeValue(ctx, global);
    return part;
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
    return bundle ? bundle : find_bundle("door:cli");
}

int main(int argc, char **argv)
{
    const struct sluice_bundle *bundle = choose_bundle(argc, argv);
    JSContext *ctx;
    int code = 70;

    // The heap grows in one step where the default would take a dozen, and is never given back: we do not live long.
    mallopt(M_TOP_PAD, 1 << 20);
    mallopt(M_TRIM_THRESHOLD, -1);
    ctx = sluice_engine_new(argc, argv, 0);
    if (!ctx || !bundle || add_loader(ctx)) {
        static const char text[] = "sluice: E_INTERNAL: out of memory at start\n";

        if (write(STDERR_FILENO, text, sizeof text - 1) < 0)
            return 71;
        return code;
    }
    if (sluice_engine_run(ctx, bundle->start, (size_t)(bundle->end - bundle->start)))
        sluice_engine_report(ctx);
    else
        code = sluice_engine_exit_code(ctx);
#ifdef SLUICE_FREE_AT_EXIT
    sluice_engine_free(ctx);
#endif
    return code;
}
