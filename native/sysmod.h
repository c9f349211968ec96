// SPDX-License-Identifier: Apache-2.0
#ifndef SLUICE_SYSMOD_H
#define SLUICE_SYSMOD_H

#include <quickjs.h>

// Puts the object `native` into the global scope: the system calls that src/sys/native.ts wraps.
// Returns 0, or -1 with an exception pending.
int sluice_sysmod_init(JSContext *ctx);

// Adds what differs from process to process: `args` and `euid`. argv must outlive the context.
// Returns 0, or -1 with an exception pending.
int sluice_sysmod_start(JSContext *ctx, int argc, char **argv);

#endif
