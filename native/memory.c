// SPDX-License-Identifier: Apache-2.0

#define _GNU_SOURCE
#include "memory.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

// Bytes of the snapshot. A build whose doors need more fails, saying so.
#define SNAPSHOT ((size_t)768 << 10)
// Bytes of the piece behind it, which most calls never leave, and of further ones.
#define PIECE ((size_t)4 << 20)
// Bytes above which a block is a mapping of its own.
#define LARGE ((size_t)256 << 10)

// What precedes each block. Blocks are aligned to its size.
struct head {
    size_t size; // of the block, as much as its class has
    size_t unused;
};

// Classes of blocks: sixteen steps of 64 bytes, then four to each doubling up to LARGE.
#define STEP ((size_t)64)
#define STEPS 16
#define CLASSES (STEPS + 4 * 8)

struct piece {
    unsigned char *next, *end;
};

static struct {
    JSContext *ctx;
    JSValue doors;
    struct piece piece;
    void *freed[CLASSES]; // each points to the next
    _Alignas(16) unsigned char memory[SNAPSHOT];
} snapshot __attribute__((section(".snapshot"), aligned(4096)));

static _Alignas(16) unsigned char first_piece[PIECE];
static int first_piece_taken;

static struct head *head_of(void *block)
{
    return (struct head *)block - 1;
}

// The class that holds `size` bytes, at most LARGE; the bytes that its blocks have, in `room`.
static size_t class_of(size_t size, size_t *room)
{
    size_t class = STEPS, step = STEP * STEPS / 4, top = STEP * STEPS;

    if (size <= STEP * STEPS) {
        class = size ? (size - 1) / STEP : 0;
        *room = (class + 1) * STEP;
        return class;
    }
    while (size > 2 * top) {
        top *= 2;
        step *= 2;
        class += 4;
    }
    class += (size - top - 1) / step;
    *room = top + ((size - top - 1) / step + 1) * step;
    return class;
}

static void *map(size_t size)
{
    void *place = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    return place == MAP_FAILED ? NULL : place;
}

// The rest of the old piece is lost, which is less than LARGE.
static int next_piece(void)
{
    unsigned char *place = first_piece_taken ? map(PIECE) : first_piece;

    if (!snapshot.ctx || !place)
        return -1;
    first_piece_taken = 1;
    snapshot.piece = (struct piece){place, place + PIECE};
    return 0;
}

static void *take_large(size_t size)
{
    struct head *head = size < SIZE_MAX - sizeof *head ? map(sizeof *head + size) : NULL;

    if (!head)
        return NULL;
    head->size = size;
    return head + 1;
}

// `zero` is set where the memory is known to be zero.
static void *take(size_t size, int *zero)
{
    size_t room, class;
    struct head *head;
    void *block;

    *zero = 1;
    if (size > LARGE)
        return take_large(size);
    class = class_of(size, &room);
    block = snapshot.freed[class];
    if (block) {
        memcpy(&snapshot.freed[class], block, sizeof block);
        *zero = 0;
        return block;
    }
    if (!snapshot.piece.next)
        snapshot.piece = (struct piece){snapshot.memory, snapshot.memory + SNAPSHOT};
    if ((size_t)(snapshot.piece.end - snapshot.piece.next) < sizeof *head + room && next_piece())
        return NULL;
    head = (struct head *)snapshot.piece.next;
    snapshot.piece.next += sizeof *head + room;
    head->size = room;
    return head + 1;
}

static void *memory_malloc(void *opaque, size_t size)
{
    int zero;

    (void)opaque;
    return take(size, &zero);
}

static void *memory_calloc(void *opaque, size_t count, size_t size)
{
    // The engine has checked the product.
    int zero;
    void *block = take(count * size, &zero);

    (void)opaque;
    if (block && !zero)
        memset(block, 0, count * size);
    return block;
}

static void memory_free(void *opaque, void *block)
{
    size_t room;

    (void)opaque;
    if (!block)
        return;
    if (head_of(block)->size > LARGE) {
        munmap(head_of(block), sizeof(struct head) + head_of(block)->size);
    } else {
        void **list = &snapshot.freed[class_of(head_of(block)->size, &room)];

        memcpy(block, list, sizeof *list);
        *list = block;
    }
}

static void *memory_realloc(void *opaque, void *block, size_t size)
{
    struct head *head;
    size_t old, room;
    void *moved;

    if (!block)
        return memory_malloc(opaque, size);
    head = head_of(block);
    old = head->size;
    if (old > LARGE && size > LARGE) {
        head = mremap(head, sizeof *head + old, sizeof *head + size, MREMAP_MAYMOVE);
        if (head == MAP_FAILED)
            return NULL;
        head->size = size;
        return head + 1;
    }
    if (size <= old)
        return block;
    // The last block grows where it is: a text that is being written mostly is the last.
    if (old <= LARGE && size <= LARGE && (unsigned char *)block + old == snapshot.piece.next) {
        class_of(size, &room);
        if ((size_t)(snapshot.piece.end - (unsigned char *)block) >= room) {
            snapshot.piece.next = (unsigned char *)block + room;
            head->size = room;
            return block;
        }
    }
    moved = memory_malloc(opaque, size);
    if (!moved)
        return NULL;
    memcpy(moved, block, old);
    memory_free(opaque, block);
    return moved;
}

static size_t memory_usable(const void *block)
{
    return block ? ((const struct head *)block - 1)->size : 0;
}

const JSMallocFunctions sluice_memory = {memory_calloc, memory_malloc, memory_free, memory_realloc, memory_usable};

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
