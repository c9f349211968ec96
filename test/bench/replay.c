// SPDX-License-Identifier: Apache-2.0
//
// A container runtime, as a plugin of NRI sees it, that replays one request: what it takes until the answer is there is
// the plugin's time, and little of ours.
//
//   replay SOCKET MESSAGE...
//
// Listens at the socket and takes one plugin. The files hold ttrpc requests: all but the last are sent once, in their
// order, and it prints "ready". Then, for each line "COUNT MICROSECONDS" of its input, the last is sent so many times
// with so much of a pause before each; it prints the nanoseconds of each, and "done" with the bytes of the last answer.

#define _GNU_SOURCE
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { MUX = 8, TTRPC = 10, PLUGIN = 1, RUNTIME = 2, REQUEST = 1, RESPONSE = 2, LARGEST = 1 << 20 };
// Of a frame of the mux, as Go sends it, and as it can be read by Go.
enum { FRAME = 4096 };

struct message {
    uint32_t channel;
    uint32_t id;
    int type;
    size_t length;
};

static int plugin;
static unsigned char sent[TTRPC + LARGEST];
static unsigned char got[TTRPC + LARGEST];

static void fail(const char *what) {
    fprintf(stderr, "replay: %s: %s\n", what, errno == 0 ? "not what was expected" : strerror(errno));
    exit(1);
}

static uint32_t get32(const unsigned char *at) {
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static void put32(unsigned char *at, uint32_t value) {
    for (int i = 0; i < 4; i++) at[i] = (unsigned char)(value >> (24 - 8 * i));
}

static void read_all(unsigned char *at, size_t length) {
    while (length > 0) {
        ssize_t n = read(plugin, at, length);
        if (n <= 0) fail("read");
        at += n;
        length -= (size_t)n;
    }
}

// The next message, whose frames are not mixed with another's.
static struct message receive(void) {
    struct message message = {0, 0, 0, 0};
    size_t have = 0, whole = TTRPC;
    while (have < whole) {
        unsigned char header[MUX];
        read_all(header, MUX);
        size_t length = get32(header + 4);
        message.channel = get32(header);
        if (length > sizeof got - have) fail("a message");
        read_all(got + have, length);
        have += length;
        if (have >= TTRPC) whole = TTRPC + get32(got);
    }
    message.id = get32(got + 4);
    message.type = got[8];
    message.length = whole - TTRPC;
    return message;
}

// Sends the body that is in its place, with its header.
static void transmit(uint32_t channel, uint32_t id, int type, size_t length) {
    put32(sent, (uint32_t)length);
    put32(sent + 4, id);
    sent[8] = (unsigned char)type;
    sent[9] = 0;
    size_t total = TTRPC + length, first = total < FRAME ? total : FRAME;
    unsigned char headers[2][MUX];
    for (int i = 0; i < 2; i++) {
        put32(headers[i], channel);
        put32(headers[i] + 4, (uint32_t)(i == 0 ? first : total - first));
    }
    struct iovec parts[] = {{headers[0], MUX}, {sent, first}, {headers[1], MUX}, {sent + first, total - first}};
    bool is_whole = first == total;
    ssize_t whole = (ssize_t)(total + MUX + (is_whole ? 0 : MUX));
    if (writev(plugin, parts, is_whole ? 2 : 4) != whole) fail("write");
}

static void ask(uint32_t id, size_t length) {
    transmit(PLUGIN, id, REQUEST, length);
    struct message answer = receive();
    if (answer.channel != PLUGIN || answer.id != id || answer.type != RESPONSE) {
        errno = 0;
        fail("the answer");
    }
}

static size_t load(const char *path) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) fail(path);
    size_t length = fread(sent + TTRPC, 1, LARGEST, file);
    fclose(file);
    return length;
}

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

int main(int argc, char **argv) {
    if (argc < 3) fail("usage: replay SOCKET MESSAGE...");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(argv[1]) >= sizeof address.sun_path) fail("the socket's path");
    strcpy(address.sun_path, argv[1]);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    unlink(argv[1]);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 1) != 0) fail(argv[1]);
    plugin = accept(listener, NULL, NULL);
    if (plugin < 0) fail("accept");

    struct message registration = receive();
    if (registration.channel != RUNTIME) fail("the registration");
    transmit(RUNTIME, registration.id, RESPONSE, 0);
    uint32_t id = 1;
    size_t length = 0;
    for (int i = 2; i < argc; i++, id += 2) {
        length = load(argv[i]);
        if (i + 1 < argc) ask(id, length);
    }
    printf("ready\n");
    fflush(stdout);

    long count, pause;
    while (scanf("%ld %ld", &count, &pause) == 2) {
        for (; count > 0; count--, id += 2) {
            struct timespec time = {pause / 1000000, pause % 1000000 * 1000};
            if (pause > 0) nanosleep(&time, NULL);
            long long start = now();
            ask(id, length);
            printf("%lld\n", now() - start);
        }
        printf("done %zu\n", (size_t)get32(got));
        fflush(stdout);
    }
    return 0;
}
