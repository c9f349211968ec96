// SPDX-License-Identifier: Apache-2.0
#ifndef SLUICE_SNAPSHOT_H
#define SLUICE_SNAPSHOT_H

#include <quickjs.h>

// The memory of an engine that has loaded the doors already, as a part of the executable: the kernel maps it with the
// program, and only the pages that a call touches cost anything.
//
// The build links the program with an empty snapshot, runs it, and puts what it writes in the place of the empty one.
// That works because nothing else changes: the program has fixed addresses, and so does its snapshot. What depends on
// the process (arguments, user, stack) is set at start (sluice_engine_start).

// The functions that an engine takes its memory with: while recording from the snapshot, later from the C library,
// what came from the snapshot is never given back.
extern const JSMallocFunctions sluice_snapshot_memory;

// From now on memory comes from the snapshot.
void sluice_snapshot_record(void);

// Writes the snapshot of `ctx` to standard output; `doors` is kept for sluice_snapshot_doors. 0, or -1.
int sluice_snapshot_write(JSContext *ctx, JSValue doors);

// The engine of the snapshot; NULL where it is empty.
JSContext *sluice_snapshot_context(void);

// The object of the doors that are loaded, by name. Borrowed.
JSValueConst sluice_snapshot_doors(void);

#endif
