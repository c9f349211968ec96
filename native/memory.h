// SPDX-License-Identifier: Apache-2.0
#ifndef SLUICE_MEMORY_H
#define SLUICE_MEMORY_H

#include <quickjs.h>

// The engine's memory, and its snapshot.
//
// A process that lives for milliseconds wants no system calls for its memory, and as few pages as can be: blocks come
// one behind the other from a piece that is part of the program, and a freed block is kept for the next of its size.
//
// The first piece is the snapshot: the memory of an engine that has loaded the doors already. The kernel maps it with
// the program, and only the pages that a call touches cost anything. The build links the program with an empty
// snapshot, runs it, and puts what it writes in the place of the empty one. That works because nothing else changes:
// the program has fixed addresses, and so has its snapshot. What depends on the process (arguments, user, stack) is
// set at start (sluice_engine_start).
extern const JSMallocFunctions sluice_memory;

// Before the snapshot's engine is made: where its blocks are to be. The kernel copies each page of the snapshot that is
// written to, which takes longer than most of what a call does, so what calls write to should lie together. The file has
// two 32-bit numbers for each block, in the order in which they are made: where it starts in the snapshot, and its bytes,
// both with its head. What is freed before the snapshot is written belongs outside, which the highest bit of the first
// number says: it is left out. 0, or -1 where there is no such file. Of another program's order, the engine finds no memory.
int sluice_snapshot_order(const char *path);

// Writes the snapshot of `ctx`, which has all its memory from here, to standard output; sluice_snapshot_doors gives
// `doors`. 0, or -1.
int sluice_snapshot_write(JSContext *ctx, JSValue doors);

// The engine of the snapshot; NULL where it is empty.
JSContext *sluice_snapshot_context(void);

// The object of the doors that are loaded, by name. Borrowed.
JSValueConst sluice_snapshot_doors(void);

#endif
