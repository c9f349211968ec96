// SPDX-License-Identifier: Apache-2.0
//
// sluice-js, for the build and the tests only:
//   sluice-js compile SCRIPT OUTPUT   writes the script's bytecode
//   sluice-js run SCRIPT [ARGS]       runs the script's source, with the same engine and system calls as sluice; its exit
//                                     code is the script's global `exitCode`

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"

static char *read_file(const char *path, size_t *size)
{
    FILE *f = fopen(path, "rbe");
    char *data = NULL;
    long length;

    if (!f)
        return NULL;
    if (!fseek(f, 0, SEEK_END) && (length = ftell(f)) >= 0 && !fseek(f, 0, SEEK_SET) &&
        (data = malloc((size_t)length + 1))) {
        *size = fread(data, 1, (size_t)length, f);
        data[*size] = 0;
        if (*size != (size_t)length) {
            free(data);
            data = NULL;
        }
    }
    fclose(f);
    return data;
}

static int compile(JSContext *ctx, const char *source, size_t size, const char *name, const char *output)
{
    JSValue code = JS_Eval(ctx, source, size, name, JS_EVAL_TYPE_GLOBAL | JS_EVAL_FLAG_COMPILE_ONLY);
    uint8_t *bytes;
    size_t length;
    FILE *f;
    int failed;

    if (JS_IsException(code))
        return -1;
    bytes = JS_WriteObject(ctx, &length, code, JS_WRITE_OBJ_BYTECODE | JS_WRITE_OBJ_STRIP_SOURCE);
    JS_FreeValue(ctx, code);
    if (!bytes)
        return -1;
    f = fopen(output, "wbe");
    failed = !f || fwrite(bytes, 1, length, f) != length;
    if (f && fclose(f))
        failed = 1;
    js_free(ctx, bytes);
    if (failed)
        JS_FreeValue(ctx, JS_ThrowInternalError(ctx, "%s: %s", output, strerror(errno)));
    return failed ? -1 : 0;
}

int main(int argc, char **argv)
{
    int compiling = argc == 4 && !strcmp(argv[1], "compile");
    int running = argc >= 3 && !strcmp(argv[1], "run");
    size_t size = 0;
    char *source;
    const char *name;
    JSContext *ctx;
    int failed, code = 0;

    if (!compiling && !running) {
        fprintf(stderr, "usage: sluice-js compile SCRIPT OUTPUT | run SCRIPT [ARGS]\n");
        return 2;
    }
    source = read_file(argv[2], &size);
    // The script sees its own arguments as a program would: [0] is its name.
    ctx = source ? sluice_engine_new(NULL, 1) : NULL;
    if (!ctx || sluice_engine_start(ctx, argc - 2, argv + 2)) {
        fprintf(stderr, "sluice-js: %s: %s\n", argv[2], source ? "out of memory" : strerror(errno));
        free(source);
        return 1;
    }
    name = strrchr(argv[2], '/');
    name = name ? name + 1 : argv[2];
    if (compiling) {
        failed = compile(ctx, source, size, name, argv[3]);
    } else {
        JSValue result = JS_Eval(ctx, source, size, name, JS_EVAL_TYPE_GLOBAL);

        JSValue global = JS_GetGlobalObject(ctx);

        failed = JS_IsException(result);
        JS_FreeValue(ctx, result);
        if (!failed)
            code = sluice_engine_exit_code(ctx, JS_GetPropertyStr(ctx, global, "exitCode"));
        JS_FreeValue(ctx, global);
    }
    if (failed) {
        sluice_engine_report(ctx);
        code = 1;
    }
    sluice_engine_free(ctx);
    free(source);
    return code;
}
