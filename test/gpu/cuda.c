// SPDX-License-Identifier: Apache-2.0
//
// What a container must be able to do with a GPU: loads the CUDA driver's library as programs do, and sends bytes to
// each device that it sees and, by way of a second buffer on the device, back. Prints one JSON object.
//
// Exit: 0 all devices did it; 10 there is no libcuda.so.1; 11 a call failed or the bytes came back changed.
//
// Types and entry points are those of the CUDA driver API; nothing of CUDA is needed to compile it.
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SUCCESS = 0, EXIT_NO_LIBRARY = 10, EXIT_FAILED = 11 };
enum { BYTES = 64 << 20 };

typedef unsigned long long device_pointer;

static int (*init)(unsigned);
static int (*driver_version)(int *);
static int (*device_count)(int *);
static int (*device_get)(int *, int);
static int (*device_name)(char *, int, int);
static int (*total_mem)(size_t *, int);
static int (*retain)(void **, int);
static int (*set_current)(void *);
static int (*release)(int);
static int (*mem_alloc)(device_pointer *, size_t);
static int (*to_device)(device_pointer, const void *, size_t);
static int (*within_device)(device_pointer, device_pointer, size_t);
static int (*to_host)(void *, device_pointer, size_t);
static int (*mem_free)(device_pointer);
static int (*error_name)(int, const char **);

// ISO C has no cast between data and function pointers, POSIX wants one: hence the pointer to the pointer.
static const struct {
    const char *name;
    void *pointer;
} ENTRY_POINTS[] = {
    {"cuInit", &init},
    {"cuDriverGetVersion", &driver_version},
    {"cuDeviceGetCount", &device_count},
    {"cuDeviceGet", &device_get},
    {"cuDeviceGetName", &device_name},
    {"cuDeviceTotalMem_v2", &total_mem},
    {"cuDevicePrimaryCtxRetain", &retain},
    {"cuCtxSetCurrent", &set_current},
    {"cuDevicePrimaryCtxRelease_v2", &release},
    {"cuMemAlloc_v2", &mem_alloc},
    {"cuMemcpyHtoD_v2", &to_device},
    {"cuMemcpyDtoD_v2", &within_device},
    {"cuMemcpyDtoH_v2", &to_host},
    {"cuMemFree_v2", &mem_free},
    {"cuGetErrorName", &error_name},
};

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static void print_string(const char *text) {
    putchar('"');
    for (; *text != '\0'; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\') printf("\\%c", c);
        else if (c < 0x20) printf("\\u%04x", c);
        else putchar(c);
    }
    putchar('"');
}

static _Noreturn void fail(int status, const char *format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    // Closes whatever was being printed: readers take the last line.
    printf("\n{\"error\":");
    print_string(text);
    printf("}\n");
    exit(status);
}

static void must(int result, const char *what) {
    const char *name = NULL;
    if (result == SUCCESS) return;
    if (error_name(result, &name) != SUCCESS || name == NULL) name = "unknown";
    fail(EXIT_FAILED, "%s: %s (%d)", what, name, result);
}

static void use_device(int index) {
    int device;
    char name[256] = "";
    size_t memory = 0;
    void *context = NULL;
    device_pointer first, second;
    unsigned char *sent = malloc(BYTES), *received = calloc(1, BYTES);
    unsigned long long random = 88172645463325252ull + (unsigned)index;

    if (sent == NULL || received == NULL) fail(EXIT_FAILED, "no memory");
    for (size_t i = 0; i < BYTES; i += sizeof random) {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17; // xorshift64
        memcpy(sent + i, &random, sizeof random);
    }
    must(device_get(&device, index), "cuDeviceGet");
    must(device_name(name, sizeof name, device), "cuDeviceGetName");
    must(total_mem(&memory, device), "cuDeviceTotalMem");
    double begun = now_ms();
    must(retain(&context, device), "cuDevicePrimaryCtxRetain");
    must(set_current(context), "cuCtxSetCurrent");
    double context_ms = now_ms() - begun;
    must(mem_alloc(&first, BYTES), "cuMemAlloc");
    must(mem_alloc(&second, BYTES), "cuMemAlloc");
    begun = now_ms();
    must(to_device(first, sent, BYTES), "cuMemcpyHtoD");
    must(within_device(second, first, BYTES), "cuMemcpyDtoD");
    must(to_host(received, second, BYTES), "cuMemcpyDtoH");
    double copy_ms = now_ms() - begun;
    if (memcmp(sent, received, BYTES) != 0) fail(EXIT_FAILED, "device %d: the bytes came back changed", index);
    must(mem_free(second), "cuMemFree");
    must(mem_free(first), "cuMemFree");
    must(release(device), "cuDevicePrimaryCtxRelease");
    free(sent);
    free(received);
    printf("%s{\"name\":", index == 0 ? "" : ",");
    print_string(name);
    printf(",\"memory_bytes\":%zu,\"context_ms\":%.2f,\"copied_bytes\":%d,\"copy_ms\":%.2f}", memory, context_ms, BYTES,
           copy_ms);
}

int main(void) {
    int version = 0, count = 0;
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    if (library == NULL) fail(EXIT_NO_LIBRARY, "%s", dlerror());
    for (size_t i = 0; i < sizeof ENTRY_POINTS / sizeof *ENTRY_POINTS; i++) {
        void *address = dlsym(library, ENTRY_POINTS[i].name);
        if (address == NULL) fail(EXIT_FAILED, "%s", dlerror());
        memcpy(ENTRY_POINTS[i].pointer, &address, sizeof address);
    }
    double begun = now_ms();
    must(init(0), "cuInit");
    double init_ms = now_ms() - begun;
    must(driver_version(&version), "cuDriverGetVersion");
    must(device_count(&count), "cuDeviceGetCount");
    printf("{\"cuda_version\":%d,\"init_ms\":%.2f,\"count\":%d,\"devices\":[", version, init_ms, count);
    for (int i = 0; i < count; i++) use_device(i);
    printf("]}\n");
    return 0;
}
