// SPDX-License-Identifier: Apache-2.0

#include "snapshot.h"

#include <errno.h>
#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// Bytes. A build whose doors need more fails, saying so.
#define MEMORY ((size_t)640 << 10)

// What precedes each block: its size, in the space that keeps the block aligned.
#define HEAD ((size_t)16)

static struct {
    JSContext *ctx;
    JSValue doors;
    size_t used;
    _Alignas(16) unsigned char memory[MEMORY];
} snapshot __attribute__((section(".snapshot"), aligned(4096)));

static int recording;

static int is_recorded(const void *block)
{
    return (uintptr_t)block - (uintptr_t)snapshot.memory < MEMORY;
}

static size_t recorded_size(const void *block)
{
    size_t size;

    memcpy(&size, (const unsigned char *)block - HEAD, sizeof size);
    return size;
}

static void *take(void *opaque, size_t size)
{
    unsigned char *block = snapshot.memory + snapshot.used + HEAD;

    (void)opaque;
    if (!recording)
        return malloc(size);
    size = (size + 15) & ~(size_t)15;
    if (size > MEMORY || snapshot.used + HEAD + size > MEMORY)
        return NULL;
    memcpy(block - HEAD, &size, sizeof size);
    snapshot.used += HEAD + size;
    return block;
}

static void *take_zeroed(void *opaque, size_t count, size_t size)
{
    // The engine has checked the product. The snapshot's memory is zero where nobody has had it.
    return recording ? take(opaque, count * size) : calloc(count, size);
}

static void give_back(void *opaque, void *block)
{
    (void)opaque;
    if (!is_recorded(block))
        free(block);
}

static void *resize(void *opaque, void *block, size_t size)
{
    size_t old;
    void *moved;

    if (!block)
        return take(opaque, size);
    if (!is_recorded(block))
        return realloc(block, size);
    old = recorded_size(block);
    if (size <= old)
        return block;
    moved = take(opaque, size);
    if (moved)
        memcpy(moved, block, old);
    return moved;
}

static size_t usable(const void *block)
{
    return !block ? 0 : is_recorded(block) ? recorded_size(block) : malloc_usable_size((void *)block);
}

const JSMallocFunctions sluice_snapshot_memory = {take_zeroed, take, give_back, resize, usable};

void sluice_snapshot_record(void)
{
    recording = 1;
}

int sluice_snapshot_write(JSContext *ctx, JSValue doors)
{
    const unsigned char *next = (const unsigned char *)&snapshot;
    size_t left = sizeof snapshot;

    snapshot.ctx = ctx;
    snapshot.doors = doors;
    while (left > 0) {
        ssize_t written = write(STDOUT_FILENO, next, left);

        if (written < 0 && errno != EINTR)
            return -1;
        if (written > 0) {
            next += written;
            left -= (size_t)written;
        }
    }
    return 0;
}

JSContext *sluice_snapshot_context(void)
{
    return snapshot.ctx;
}

JSValueConst sluice_snapshot_doors(void)
{
    return snapshot.doors;
}
