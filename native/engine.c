// SPDX-License-Identifier: Apache-2.0
//
// QuickJS-ng as Sluice runs it.

#include "engine.h"

#include <stdio.h>
#include <sys/resource.h>

#include "sysmod.h"

// A container start needs 2 MB; `sluice cdi list` over thousands of specs some tens. Hostile input must hit a wall.
#define MEMORY_LIMIT ((size_t)512 << 20)
// The cycle collector never pays in a process that lives for milliseconds.
#define GC_THRESHOLD ((size_t)64 << 20)

// Bytes. Takes JSON and brackets nested some thousands deep.
#define STACK_LIMIT ((rlim_t)1 << 20)

// Of a process's stack a quarter may be taken by its arguments and environment (execve(2)), and the engine looks at its
// limit only now and then: half of it is safe to use.
static size_t stack_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_STACK, &limit) < 0 || limit.rlim_cur / 2 > STACK_LIMIT)
        return STACK_LIMIT;
    return limit.rlim_cur / 2;
}

JSContext *sluice_engine_new(const JSMallocFunctions *memory, int with_compiler)
{
    JSRuntime *rt = memory ? JS_NewRuntime2(memory, NULL) : JS_NewRuntime();
    JSContext *ctx;

    if (!rt)
        return NULL;
    JS_SetMemoryLimit(rt, MEMORY_LIMIT);
    JS_SetGCThreshold(rt, GC_THRESHOLD);
    ctx = JS_NewContextRaw(rt);
    if (!ctx) {
        JS_FreeRuntime(rt);
        return NULL;
    }
    JS_AddIntrinsicRegExpCompiler(ctx);
    if (JS_AddIntrinsicBaseObjects(ctx) || JS_AddIntrinsicRegExp(ctx) || JS_AddIntrinsicJSON(ctx) ||
        JS_AddIntrinsicMapSet(ctx) || (with_compiler && JS_AddIntrinsicEval(ctx)) ||
        sluice_sysmod_init(ctx)) {
        sluice_engine_free(ctx);
        return NULL;
    }
    return ctx;
}

int sluice_engine_start(JSContext *ctx, int argc, char **argv)
{
    JSRuntime *rt = JS_GetRuntime(ctx);

    JS_SetMaxStackSize(rt, stack_limit());
    JS_UpdateStackTop(rt);
    return sluice_sysmod_start(ctx, argc, argv);
}

void sluice_engine_free(JSContext *ctx)
{
    JSRuntime *rt = JS_GetRuntime(ctx);

    JS_FreeContext(ctx);
    JS_FreeRuntime(rt);
}

int sluice_engine_run(JSContext *ctx, const unsigned char *bytecode, size_t size)
{
    JSValue code = JS_ReadObject(ctx, bytecode, size, JS_READ_OBJ_BYTECODE);
    JSValue result;

    if (JS_IsException(code))
        return -1;
    result = JS_EvalFunction(ctx, code);
    if (JS_IsException(result))
        return -1;
    JS_FreeValue(ctx, result);
    return 0;
}

void sluice_engine_report(JSContext *ctx)
{
    JSValue thrown = JS_GetException(ctx);
    const char *text = JS_ToCString(ctx, thrown);
    JSValue stack = JS_IsObject(thrown) ? JS_GetPropertyStr(ctx, thrown, "stack") : JS_UNDEFINED;
    const char *where = JS_IsString(stack) ? JS_ToCString(ctx, stack) : NULL;

    fprintf(stderr, "sluice: E_INTERNAL: %s\n%s", text ? text : "unprintable exception", where ? where : "");
    if (text)
        JS_FreeCString(ctx, text);
    if (where)
        JS_FreeCString(ctx, where);
    JS_FreeValue(ctx, stack);
    JS_FreeValue(ctx, thrown);
}

int sluice_engine_exit_code(JSContext *ctx, JSValue value)
{
    int32_t code = 70;

    if (!JS_IsNumber(value) || JS_ToInt32(ctx, &code, value))
        code = 70;
    JS_FreeValue(ctx, value);
    return code;
}
