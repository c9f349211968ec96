// SPDX-License-Identifier: Apache-2.0
#ifndef SLUICE_ENGINE_H
#define SLUICE_ENGINE_H

#include <quickjs.h>
#include <stddef.h>

// A context with the parts of the language that Sluice uses, and the global `native`. `memory` is NULL for the C
// library's. `with_compiler` adds what turns source text into code, which the product never does. NULL on failure.
JSContext *sluice_engine_new(const JSMallocFunctions *memory, int with_compiler);

// Tells the engine of this process: its arguments, its user, its stack. argv must outlive the context.
// 0, or -1 with an exception pending.
int sluice_engine_start(JSContext *ctx, int argc, char **argv);

// Frees everything, so that a leak checker has nothing to say that is not a leak.
void sluice_engine_free(JSContext *ctx);

// Runs a bytecode script. 0, or -1 with an exception pending.
int sluice_engine_run(JSContext *ctx, const unsigned char *bytecode, size_t size);

// Writes the pending exception and its stack to standard error.
void sluice_engine_report(JSContext *ctx);

// `value` as an exit code, which it frees; 70 (EX_SOFTWARE) where it is not a number.
int sluice_engine_exit_code(JSContext *ctx, JSValue value);

#endif
