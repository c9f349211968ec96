/*
 * Loads libraries as programs do, by name; for containers, with their own loader.
 *
 *   load NAME...     says of each where the loader found it: "libcuda.so.1: /usr/lib/x86_64-linux-gnu/libcuda.so.1",
 *                    or "libcuda.so.1: not loaded: REASON". Of one with CUDA's entry points also how many GPUs it sees:
 *                    "libcuda.so.1: 2 GPUs"
 *
 * Ends with 0 if all could be loaded, with 1 if not.
 */
#include <dlfcn.h>
#include <link.h>
#include <stdio.h>
#include <string.h>

/* ISO C has no cast between data and function pointers, POSIX wants one: hence the copy. */
static int count_gpus(void *library) {
    int (*init)(unsigned), (*device_count)(int *);
    void *entries[] = {dlsym(library, "cuInit"), dlsym(library, "cuDeviceGetCount")};
    int count = 0;
    if (entries[0] == NULL || entries[1] == NULL) return -1;
    memcpy(&init, &entries[0], sizeof init);
    memcpy(&device_count, &entries[1], sizeof device_count);
    return init(0) == 0 && device_count(&count) == 0 ? count : 0;
}

int main(int argc, char **argv) {
    int failed = 0;
    for (int i = 1; i < argc; i++) {
        struct link_map *map;
        void *library = dlopen(argv[i], RTLD_NOW | RTLD_LOCAL);
        if (library == NULL || dlinfo(library, RTLD_DI_LINKMAP, &map) != 0) {
            printf("%s: not loaded: %s\n", argv[i], dlerror());
            failed = 1;
            continue;
        }
        int count = count_gpus(library);
        printf("%s: %s\n", argv[i], map->l_name);
        if (count >= 0) printf("%s: %d GPUs\n", argv[i], count);
    }
    return failed;
}
