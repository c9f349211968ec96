// SPDX-License-Identifier: Apache-2.0

#define _GNU_SOURCE
#include "memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

// Bytes of a page, or of a part of one where they are larger.
#define PAGE 4096
// Bytes of the snapshot. A build whose doors need more fails, saying so. In training, each block has pages of its own.
#ifdef SLUICE_TRAINING
#define SNAPSHOT ((size_t)64 << 20)
#else
#define SNAPSHOT ((size_t)832 << 10)
#endif
// Bytes of the piece behind it, which most calls never leave, and of further ones.
#define PIECE ((size_t)4 << 20)
// Bytes above which a block is a mapping of its own.
#define LARGE (((size_t)256 << 10) - sizeof(struct head))

// What precedes each block: the bytes that the block has, as much as its class.
//
// Each page that a call is the first to touch costs it microseconds, more than all else here. So blocks lie close: the
// head is as small as can be, and with it a block fills whole steps of the alignment.
struct head {
    size_t size;
};
#define ALIGNMENT ((size_t)16)
// In the size of a block in a snapshot without an order: that it was freed.
#define FREED ((size_t)1)

// Classes of blocks, with their heads: 64 steps of 16 bytes, then four to each doubling up to LARGE.
#define STEP ALIGNMENT
#define STEPS 64
#define CLASSES (STEPS + 4 * 8)

struct piece {
    unsigned char *next, *end;
};

static struct {
    // First, for those who look at a snapshot from outside: block behind block, and zeros behind the last.
    _Alignas(16) unsigned char memory[SNAPSHOT];
    JSContext *ctx;
    JSValue doors;
    struct piece piece;
    void *freed[CLASSES]; // each points to the next
} snapshot __attribute__((section(".snapshot"), aligned(PAGE)));

static _Alignas(16) unsigned char first_piece[PIECE];
static int first_piece_taken;

// Where the blocks of a snapshot being made are to be (sluice_snapshot_order), and how many there are already.
struct place {
    uint32_t offset, size; // with their heads
};
static const struct place *order;
static size_t ordered, placed;
// In an offset: that the block is to lie in the piece behind the snapshot.
#define OUTSIDE 0x80000000u

static int is_outside(const struct place *place)
{
    return (place->offset & OUTSIDE) != 0;
}

static struct head *head_of(const void *block)
{
    return (struct head *)block - 1;
}

// The class that holds `size` bytes, at most LARGE; the bytes that its blocks have, in `room`.
static size_t class_of(size_t size, size_t *room)
{
    size_t class = STEPS, step = STEP * STEPS / 4, top = STEP * STEPS;

    size += sizeof(struct head);
    if (size <= STEP * STEPS) {
        class = (size - 1) / STEP;
        *room = (class + 1) * STEP - sizeof(struct head);
        return class;
    }
    while (size > 2 * top) {
        top *= 2;
        step *= 2;
        class += 4;
    }
    class += (size - top - 1) / step;
    *room = top + ((size - top - 1) / step + 1) * step - sizeof(struct head);
    return class;
}

static void *map(size_t size)
{
    void *place = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    return place == MAP_FAILED ? NULL : place;
}

// Where the first head of a piece stands, so that its block is aligned.
static unsigned char *start_of(unsigned char *place)
{
    return place + ALIGNMENT - sizeof(struct head);
}

// The rest of the old piece is lost, which is less than LARGE.
static int next_piece(void)
{
    unsigned char *place = first_piece_taken ? map(PIECE) : first_piece;

    if (!snapshot.ctx || !place)
        return -1;
    first_piece_taken = 1;
    snapshot.piece = (struct piece){start_of(place), place + PIECE};
    return 0;
}

static void *take_large(size_t size)
{
    unsigned char *place = size < SIZE_MAX - ALIGNMENT ? map(ALIGNMENT + size) : NULL;

    if (!place)
        return NULL;
    head_of(place + ALIGNMENT)->size = size;
    return place + ALIGNMENT;
}

// The place of the next block of an ordered snapshot; NULL where the order is another program's.
static struct head *next_place(size_t size)
{
    size_t offset;
    int outside;

    if (placed == ordered || order[placed].size != size)
        return NULL;
    outside = is_outside(&order[placed]);
    offset = order[placed++].offset & ~OUTSIDE;
    if (offset + size > (outside ? PIECE : SNAPSHOT))
        return NULL;
    return (struct head *)((outside ? first_piece : snapshot.memory) + offset);
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
        snapshot.piece = (struct piece){start_of(snapshot.memory), snapshot.memory + SNAPSHOT};
    if (order) {
        head = next_place(sizeof *head + room);
    } else if ((size_t)(snapshot.piece.end - snapshot.piece.next) >= sizeof *head + room || !next_piece()) {
        head = (struct head *)snapshot.piece.next;
        snapshot.piece.next += sizeof *head + room;
    } else {
        head = NULL;
    }
    if (!head)
        return NULL;
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
        munmap((unsigned char *)block - ALIGNMENT, ALIGNMENT + head_of(block)->size);
    } else {
        void **list = &snapshot.freed[class_of(head_of(block)->size, &room)];

        memcpy(block, list, sizeof *list);
        *list = block;
    }
}

static void *memory_realloc(void *opaque, void *block, size_t size)
{
    size_t old, room;
    void *moved;

    if (!block)
        return memory_malloc(opaque, size);
    old = head_of(block)->size;
    if (old > LARGE && size > LARGE) {
        if (size > SIZE_MAX - ALIGNMENT)
            return NULL;
        moved = mremap((unsigned char *)block - ALIGNMENT, ALIGNMENT + old, ALIGNMENT + size, MREMAP_MAYMOVE);
        if (moved == MAP_FAILED)
            return NULL;
        moved = (unsigned char *)moved + ALIGNMENT;
        head_of(moved)->size = size;
        return moved;
    }
    if (size <= old)
        return block;
    // The last block grows where it is: a text that is being written mostly is the last. But not in a snapshot being made,
    // where it depends on the order which block is the last.
    if (snapshot.ctx && old <= LARGE && size <= LARGE && (unsigned char *)block + old == snapshot.piece.next) {
        class_of(size, &room);
        if ((size_t)(snapshot.piece.end - (unsigned char *)block) >= room) {
            snapshot.piece.next = (unsigned char *)block + room;
            head_of(block)->size = room;
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
    return block ? head_of(block)->size : 0;
}

const JSMallocFunctions sluice_memory = {memory_calloc, memory_malloc, memory_free, memory_realloc, memory_usable};

int sluice_snapshot_order(const char *path)
{
    int file = open(path, O_RDONLY | O_CLOEXEC);
    struct stat info;
    void *list = MAP_FAILED;

    if (file < 0)
        return -1;
    if (!fstat(file, &info) && info.st_size > 0)
        list = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    if (list == MAP_FAILED)
        return -1;
    order = list;
    ordered = (size_t)info.st_size / sizeof *order;
    return 0;
}

#ifdef SLUICE_TRAINING
// For the build, which asks a program like this one what it writes to until it becomes another one (linked with
// --wrap=execve), or ends: `1` for each page of the snapshot that was written to, `0` for the others.
static void tell_written(const char *list)
{
    static uint64_t pages[sizeof snapshot / PAGE];
    int file = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    FILE *out = fopen(list, "we");

    if (!out || pread(file, pages, sizeof pages, (off_t)((uintptr_t)&snapshot / PAGE * sizeof *pages)) != sizeof pages)
        abort();
    for (size_t i = 0; i < sizeof pages / sizeof *pages; i++) {
        int present = pages[i] >> 63 & 1, of_file = pages[i] >> 61 & 1;

        fputc(present && !of_file ? '1' : '0', out);
    }
    fclose(out);
}

int __real_execve(const char *path, char *const argv[], char *const envp[]);

int __wrap_execve(const char *path, char *const argv[], char *const envp[])
{
    tell_written(getenv("SLUICE_WRITTEN"));
    return __real_execve(path, argv, envp);
}

__attribute__((destructor)) static void tell_written_at_end(void)
{
    const char *list = getenv("SLUICE_WRITTEN_AT_END");

    if (list)
        tell_written(list);
}
#endif

int sluice_snapshot_write(JSContext *ctx, JSValue doors)
{
    const unsigned char *next = (const unsigned char *)&snapshot;
    size_t left = sizeof snapshot;

    if (order) {
        // The freed blocks were put outside. What comes later lies behind all others.
        memset(snapshot.freed, 0, sizeof snapshot.freed);
        for (size_t i = 0; i < placed; i++) {
            unsigned char *end = snapshot.memory + order[i].offset + order[i].size;

            if (!is_outside(&order[i]) && end > snapshot.piece.next)
                snapshot.piece.next = end;
        }
    } else {
        // For whoever makes an order.
        for (size_t i = 0; i < CLASSES; i++)
            for (void *block = snapshot.freed[i]; block; memcpy(&block, block, sizeof block))
                head_of(block)->size |= FREED;
    }
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
