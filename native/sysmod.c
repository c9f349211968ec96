// SPDX-License-Identifier: Apache-2.0
//
// The system calls of the executable, as functions of one JavaScript object. Wrappers without policy: each checks its
// arguments, makes the call, and throws {code, syscall, path} on failure. src/sys/native.ts says what they mean.
//
// Rules: every descriptor is opened O_CLOEXEC and closed in the function that opened it; a path with a NUL in it is
// EINVAL (it would name another file); `root` is undefined or a folder beneath which the path and every link on its
// way must resolve (openat2, RESOLVE_IN_ROOT).

#define _GNU_SOURCE
#include "sysmod.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifdef SLUICE_FREE_AT_EXIT
#include <sanitizer/lsan_interface.h>
#endif

#define countof(a) (sizeof(a) / sizeof((a)[0]))

extern char **environ;

static int program_argc;
static char **program_argv;

// musl has no strerrorname_np.
#define N(name) [name] = #name
static const char *const error_names[] = {
    N(EPERM), N(ENOENT), N(ESRCH), N(EINTR), N(EIO), N(ENXIO), N(E2BIG), N(ENOEXEC), N(EBADF), N(ECHILD), N(EAGAIN), N(ENOMEM),
    N(EACCES), N(EFAULT), N(ENOTBLK), N(EBUSY), N(EEXIST), N(EXDEV), N(ENODEV), N(ENOTDIR), N(EISDIR), N(EINVAL), N(ENFILE),
    N(EMFILE), N(ENOTTY), N(ETXTBSY), N(EFBIG), N(ENOSPC), N(ESPIPE), N(EROFS), N(EMLINK), N(EPIPE), N(EDOM), N(ERANGE),
    N(EDEADLK), N(ENAMETOOLONG), N(ENOLCK), N(ENOSYS), N(ENOTEMPTY), N(ELOOP), N(ENOMSG), N(EIDRM), N(ECHRNG), N(EL2NSYNC),
    N(EL3HLT), N(EL3RST), N(ELNRNG), N(EUNATCH), N(ENOCSI), N(EL2HLT), N(EBADE), N(EBADR), N(EXFULL), N(ENOANO), N(EBADRQC),
    N(EBADSLT), N(EBFONT), N(ENOSTR), N(ENODATA), N(ETIME), N(ENOSR), N(ENONET), N(ENOPKG), N(EREMOTE), N(ENOLINK), N(EADV),
    N(ESRMNT), N(ECOMM), N(EPROTO), N(EMULTIHOP), N(EDOTDOT), N(EBADMSG), N(EOVERFLOW), N(ENOTUNIQ), N(EBADFD), N(EREMCHG),
    N(ELIBACC), N(ELIBBAD), N(ELIBSCN), N(ELIBMAX), N(ELIBEXEC), N(EILSEQ), N(ERESTART), N(ESTRPIPE), N(EUSERS), N(ENOTSOCK),
    N(EDESTADDRREQ), N(EMSGSIZE), N(EPROTOTYPE), N(ENOPROTOOPT), N(EPROTONOSUPPORT), N(ESOCKTNOSUPPORT), N(EOPNOTSUPP),
    N(EPFNOSUPPORT), N(EAFNOSUPPORT), N(EADDRINUSE), N(EADDRNOTAVAIL), N(ENETDOWN), N(ENETUNREACH), N(ENETRESET),
    N(ECONNABORTED), N(ECONNRESET), N(ENOBUFS), N(EISCONN), N(ENOTCONN), N(ESHUTDOWN), N(ETOOMANYREFS), N(ETIMEDOUT),
    N(ECONNREFUSED), N(EHOSTDOWN), N(EHOSTUNREACH), N(EALREADY), N(EINPROGRESS), N(ESTALE), N(EUCLEAN), N(ENOTNAM),
    N(ENAVAIL), N(EISNAM), N(EREMOTEIO), N(EDQUOT), N(ENOMEDIUM), N(EMEDIUMTYPE), N(ECANCELED), N(ENOKEY), N(EKEYEXPIRED),
    N(EKEYREVOKED), N(EKEYREJECTED), N(EOWNERDEAD), N(ENOTRECOVERABLE), N(ERFKILL),
};
#undef N

static JSValue fail(JSContext *ctx, int error, const char *syscall_name, const char *path)
{
    JSValue e = JS_NewError(ctx);
    const char *name = error > 0 && (size_t)error < countof(error_names) ? error_names[error] : NULL;

    if (JS_IsException(e))
        return e;
    if (JS_DefinePropertyValueStr(ctx, e, "code", JS_NewString(ctx, name ? name : "EUNKNOWN"), JS_PROP_C_W_E) < 0 ||
        JS_DefinePropertyValueStr(ctx, e, "syscall", JS_NewString(ctx, syscall_name), JS_PROP_C_W_E) < 0 ||
        JS_DefinePropertyValueStr(ctx, e, "path", JS_NewString(ctx, path ? path : ""), JS_PROP_C_W_E) < 0) {
        JS_FreeValue(ctx, e);
        return JS_EXCEPTION;
    }
    return JS_Throw(ctx, e);
}

// A string argument without NUL, to be freed with JS_FreeCString; NULL with an exception pending.
static const char *text_arg(JSContext *ctx, JSValueConst value)
{
    size_t length;
    const char *s = JS_ToCStringLen(ctx, &length, value);

    if (s && strlen(s) != length) {
        JSValue thrown = fail(ctx, EINVAL, "path", s);
        JS_FreeValue(ctx, thrown);
        JS_FreeCString(ctx, s);
        return NULL;
    }
    return s;
}

// Opens `path`, beneath `root` where that is not NULL. Returns the descriptor, or -1 with errno.
static int open_path(const char *root, const char *path, int flags, mode_t mode)
{
    int root_fd, fd, saved;

    flags |= O_CLOEXEC;
    if (!root)
        return open(path, flags, mode);
    root_fd = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root_fd < 0)
        return -1;
    struct open_how how = {
        .flags = (unsigned)flags,
        .mode = flags & O_CREAT ? mode : 0,
        .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
    };
    fd = (int)syscall(SYS_openat2, root_fd, path, &how, sizeof how);
    saved = errno;
    close(root_fd);
    errno = saved;
    return fd;
}

// The two leading arguments of every rooted call.
struct target {
    const char *root, *path;
};

static int target_args(JSContext *ctx, JSValueConst *argv, struct target *t)
{
    t->root = NULL;
    t->path = NULL;
    if (!JS_IsUndefined(argv[0]) && !(t->root = text_arg(ctx, argv[0])))
        return -1;
    if (!(t->path = text_arg(ctx, argv[1]))) {
        if (t->root)
            JS_FreeCString(ctx, t->root);
        return -1;
    }
    return 0;
}

static void target_free(JSContext *ctx, struct target *t)
{
    if (t->root)
        JS_FreeCString(ctx, t->root);
    JS_FreeCString(ctx, t->path);
}

// Throws for the target where `error` is not 0, else gives `result`; frees the target.
static JSValue target_done(JSContext *ctx, struct target *t, int error, const char *syscall_name, JSValue result)
{
    if (error) {
        JS_FreeValue(ctx, result);
        result = fail(ctx, error, syscall_name, t->path);
    }
    target_free(ctx, t);
    return result;
}

static int utf8_valid(const unsigned char *s, size_t length)
{
    size_t i = 0;

    while (i < length) {
        unsigned c = s[i];
        size_t more;
        unsigned low = 0x80, high = 0xBF;

        if (c < 0x80) {
            i++;
            continue;
        }
        if (c >= 0xC2 && c <= 0xDF) {
            more = 1;
        } else if (c >= 0xE0 && c <= 0xEF) {
            more = 2;
            low = c == 0xE0 ? 0xA0 : 0x80;  // no overlong form
            high = c == 0xED ? 0x9F : 0xBF; // no surrogate
        } else if (c >= 0xF0 && c <= 0xF4) {
            more = 3;
            low = c == 0xF0 ? 0x90 : 0x80;
            high = c == 0xF4 ? 0x8F : 0xBF; // nothing above U+10FFFF
        } else {
            return 0;
        }
        if (length - i <= more || s[i + 1] < low || s[i + 1] > high)
            return 0;
        for (size_t k = 2; k <= more; k++)
            if ((s[i + k] & 0xC0) != 0x80)
                return 0;
        i += more + 1;
    }
    return 1;
}

// readText(root, path, limit): string
static JSValue sys_read_text(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    struct target t;
    JSRuntime *rt = JS_GetRuntime(ctx);
    int64_t limit;
    struct stat st;
    char *data = NULL;
    size_t size = 0, room;
    int fd, error = 0;
    const char *call = "open";
    JSValue result = JS_UNDEFINED;

    (void)this_val;
    (void)argc;
    if (JS_ToInt64(ctx, &limit, argv[2]) || target_args(ctx, argv, &t))
        return JS_EXCEPTION;
    fd = open_path(t.root, t.path, O_RDONLY | O_NONBLOCK | O_NOCTTY, 0);
    if (fd < 0)
        return target_done(ctx, &t, errno, call, result);
    call = "read";
    if (fstat(fd, &st) < 0) {
        error = errno;
    } else if (!S_ISREG(st.st_mode)) {
        error = EINVAL;
    } else if (limit < 0 || st.st_size > limit) {
        error = EFBIG;
    } else {
        // One byte more than the size: a file that grows meanwhile, or says 0 as those of /proc do, is noticed.
        room = st.st_size > 0 ? (size_t)st.st_size + 1 : 4096;
        data = js_malloc_rt(rt, room);
        if (!data)
            error = ENOMEM;
        while (!error) {
            ssize_t n = read(fd, data + size, room - size);

            if (n < 0 && errno == EINTR)
                continue;
            if (n < 0)
                error = errno;
            if (n <= 0)
                break;
            size += (size_t)n;
            if ((int64_t)size > limit) {
                error = EFBIG;
            } else if (size == room) {
                char *larger = js_realloc_rt(rt, data, room * 2);

                if (!larger) {
                    error = ENOMEM;
                } else {
                    data = larger;
                    room *= 2;
                }
            }
        }
    }
    close(fd);
    if (!error && !utf8_valid((const unsigned char *)data, size))
        error = EILSEQ;
    if (!error)
        result = JS_NewStringLen(ctx, data, size);
    js_free_rt(rt, data);
    return target_done(ctx, &t, error, call, result);
}

// readBytes(root, path, offset, length): string of one character a byte
static JSValue sys_read_bytes(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    struct target t;
    JSRuntime *rt = JS_GetRuntime(ctx);
    int64_t offset, length;
    struct stat st;
    unsigned char *data = NULL;
    uint16_t *text = NULL;
    size_t size = 0;
    int fd, error = 0;
    const char *call = "open";
    JSValue result = JS_UNDEFINED;

    (void)this_val;
    (void)argc;
    if (JS_ToInt64(ctx, &offset, argv[2]) || JS_ToInt64(ctx, &length, argv[3]) || target_args(ctx, argv, &t))
        return JS_EXCEPTION;
    fd = open_path(t.root, t.path, O_RDONLY | O_NONBLOCK | O_NOCTTY, 0);
    if (fd < 0)
        return target_done(ctx, &t, errno, call, result);
    call = "read";
    if (fstat(fd, &st) < 0) {
        error = errno;
    } else if (!S_ISREG(st.st_mode) || offset < 0 || length < 0) {
        error = EINVAL;
    } else {
        // No more than the file says that it has: the caller's length may come from a hostile file's own header.
        if (length > st.st_size - offset)
            length = st.st_size > offset ? st.st_size - offset : 0;
        data = js_malloc_rt(rt, (size_t)length + 1);
        text = js_malloc_rt(rt, ((size_t)length + 1) * sizeof *text);
        if (!data || !text)
            error = ENOMEM;
        while (!error && size < (size_t)length) {
            ssize_t n = pread(fd, data + size, (size_t)length - size, offset + (int64_t)size);

            if (n < 0 && errno == EINTR)
                continue;
            if (n < 0)
                error = errno;
            if (n <= 0)
                break;
            size += (size_t)n;
        }
    }
    close(fd);
    if (!error) {
        for (size_t i = 0; i < size; i++)
            text[i] = data[i];
        result = JS_NewStringUTF16(ctx, text, size);
    }
    js_free_rt(rt, data);
    js_free_rt(rt, text);
    return target_done(ctx, &t, error, call, result);
}

static const char *kind_of(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFREG:
        return "file";
    case S_IFDIR:
        return "dir";
    case S_IFLNK:
        return "link";
    case S_IFCHR:
        return "char";
    case S_IFBLK:
        return "block";
    case S_IFIFO:
        return "fifo";
    case S_IFSOCK:
        return "socket";
    default:
        return "unknown";
    }
}

#define STAMP_MAX 192

// Identifies a file's content: device, inode, size, mode, owner, mtime and ctime, hexadecimal, between points. Not with
// snprintf, which would take most of the time that a look at hundreds of files takes.
static void write_stamp(char stamp[STAMP_MAX], const struct stat *st)
{
    const uint64_t fields[] = {st->st_dev, st->st_ino, (uint64_t)st->st_size, st->st_mode, st->st_uid, st->st_gid,
                               (uint64_t)st->st_mtim.tv_sec, (uint64_t)st->st_mtim.tv_nsec,
                               (uint64_t)st->st_ctim.tv_sec, (uint64_t)st->st_ctim.tv_nsec};
    char *at = stamp;

    for (size_t i = 0; i < countof(fields); i++) {
        int shift = 0;

        if (i > 0)
            *at++ = '.';
        while (shift < 60 && fields[i] >> (shift + 4))
            shift += 4;
        for (; shift >= 0; shift -= 4)
            *at++ = "0123456789abcdef"[fields[i] >> shift & 15];
    }
    *at = 0;
}

static JSValue stat_object(JSContext *ctx, const struct stat *st)
{
    int node = S_ISCHR(st->st_mode) || S_ISBLK(st->st_mode);
    char stamp[STAMP_MAX];
    static const char *names[] = {"kind", "mode", "uid", "gid", "size", "major", "minor", "stamp", "ctimeMs"};

    write_stamp(stamp, st);
    JSValue values[countof(names)] = {
        JS_NewString(ctx, kind_of(st->st_mode)),
        JS_NewInt32(ctx, st->st_mode & 07777),
        JS_NewInt64(ctx, st->st_uid),
        JS_NewInt64(ctx, st->st_gid),
        JS_NewInt64(ctx, st->st_size),
        JS_NewInt32(ctx, node ? (int)major(st->st_rdev) : 0),
        JS_NewInt32(ctx, node ? (int)minor(st->st_rdev) : 0),
        JS_NewString(ctx, stamp),
        JS_NewInt64(ctx, (int64_t)st->st_ctim.tv_sec * 1000 + st->st_ctim.tv_nsec / 1000000),
    };
    return JS_NewObjectFromStr(ctx, countof(names), names, values); // takes the values
}

static int is_absent(int error)
{
    return error == ENOENT || error == ENOTDIR;
}

// stat(root, path, follow): Stat | undefined
static JSValue sys_stat(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    struct target t;
    struct stat st;
    int follow, error = 0;

    (void)this_val;
    (void)argc;
    if (target_args(ctx, argv, &t))
        return JS_EXCEPTION;
    follow = JS_ToBool(ctx, argv[2]);
    if (t.root) {
        int fd = open_path(t.root, t.path, O_PATH | (follow ? 0 : O_NOFOLLOW), 0);

        if (fd < 0) {
            error = errno;
        } else {
            if (fstat(fd, &st) < 0)
                error = errno;
            close(fd);
        }
    } else if (fstatat(AT_FDCWD, t.path, &st, follow ? 0 : AT_SYMLINK_NOFOLLOW) < 0) {
        error = errno;
    }
    if (is_absent(error)) {
        target_free(ctx, &t);
        return JS_UNDEFINED;
    }
    return target_done(ctx, &t, error, "stat", error ? JS_UNDEFINED : stat_object(ctx, &st));
}

// stamps(root, dir, names): string, the stamps of the entries, links followed, between tabs; empty for one that is gone
static JSValue sys_stamps(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    struct target t;
    int64_t count = 0;
    int dir, error = 0;
    size_t length = 0;
    char *text;
    JSValue result = JS_UNDEFINED;

    (void)this_val;
    (void)argc;
    if (JS_GetLength(ctx, argv[2], &count) || target_args(ctx, argv, &t))
        return JS_EXCEPTION;
    dir = open_path(t.root, t.path, O_PATH | O_DIRECTORY, 0);
    if (dir < 0)
        return target_done(ctx, &t, errno, "open", JS_UNDEFINED);
    text = js_malloc(ctx, (size_t)(count + 1) * STAMP_MAX);
    if (!text)
        result = JS_EXCEPTION;
    for (int64_t i = 0; i < count && !error && !JS_IsException(result); i++) {
        JSValue item = JS_GetPropertyInt64(ctx, argv[2], i);
        const char *name = JS_IsException(item) ? NULL : text_arg(ctx, item);
        struct stat st;
        int fd = -1, failed;

        if (i > 0)
            text[length++] = '\t';
        JS_FreeValue(ctx, item);
        if (!name) {
            result = JS_EXCEPTION;
            break;
        }
        // Beneath a root a link must be followed beneath it too, so the whole path goes through openat2.
        if (t.root) {
            char path[PATH_MAX];

            if ((size_t)snprintf(path, sizeof path, "%s/%s", t.path, name) >= sizeof path) {
                errno = ENAMETOOLONG;
                failed = -1;
            } else {
                fd = open_path(t.root, path, O_PATH, 0);
                failed = fd < 0 ? -1 : fstat(fd, &st);
            }
        } else {
            failed = fstatat(dir, name, &st, 0);
        }
        if (!failed) {
            write_stamp(text + length, &st);
            length += strlen(text + length);
        } else if (!is_absent(errno) && errno != ELOOP) {
            error = errno;
        }
        if (fd >= 0)
            close(fd);
        JS_FreeCString(ctx, name);
    }
    if (!error && !JS_IsException(result))
        result = JS_NewStringLen(ctx, text, length);
    js_free(ctx, text);
    close(dir);
    return target_done(ctx, &t, error, "stat", result);
}

// A folder's entry: what it is, and its name.
struct entry {
    const char *kind;
    char name[];
};

// As strcmp, eight bytes at a time: files of one kind have long names that differ at their ends. Names are padded with
// zeros to a multiple of eight.
static int compare_entries(const void *a, const void *b)
{
    const char *one = (*(struct entry *const *)a)->name, *other = (*(struct entry *const *)b)->name;

    for (;; one += 8, other += 8) {
        uint64_t x, y;

        memcpy(&x, one, 8);
        memcpy(&y, other, 8);
        if (x != y)
            return strncmp(one, other, 8);
        if (!one[7])
            return 0;
    }
}

// Adds an entry to the list, which grows. 0, or -1 where there is no memory.
static int add_entry(JSRuntime *rt, struct entry ***list, size_t count, const char *name, const char *kind)
{
    size_t length = strlen(name);
    size_t padded = length / 8 * 8 + 8;
    struct entry *entry;

    if (!(count & (count - 1))) {
        struct entry **larger = js_realloc_rt(rt, *list, (count ? 2 * count : 1) * sizeof *larger);

        if (!larger)
            return -1;
        *list = larger;
    }
    entry = js_malloc_rt(rt, sizeof *entry + padded);
    if (!entry)
        return -1;
    entry->kind = kind;
    memset(entry->name + length, 0, padded - length);
    memcpy(entry->name, name, length);
    (*list)[count] = entry;
    return 0;
}

// list(root, path): [name, kind, name, kind, ...] | undefined, in the order of the names' bytes
static JSValue sys_list(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    JSRuntime *rt = JS_GetRuntime(ctx);
    struct target t;
    DIR *dir;
    int fd, error = 0;
    struct entry **list = NULL;
    size_t count = 0;
    JSValue result;

    (void)this_val;
    (void)argc;
    if (target_args(ctx, argv, &t))
        return JS_EXCEPTION;
    fd = open_path(t.root, t.path, O_RDONLY | O_DIRECTORY | O_NONBLOCK, 0);
    if (fd < 0 && is_absent(errno)) {
        target_free(ctx, &t);
        return JS_UNDEFINED;
    }
    if (fd < 0)
        return target_done(ctx, &t, errno, "open", JS_UNDEFINED);
    dir = fdopendir(fd);
    if (!dir) {
        error = errno;
        close(fd);
        return target_done(ctx, &t, error, "opendir", JS_UNDEFINED);
    }
    while (!error) {
        struct dirent *entry;
        struct stat st;
        const char *kind;

        errno = 0;
        entry = readdir(dir);
        if (!entry) {
            error = errno;
            break;
        }
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        if (entry->d_type != DT_UNKNOWN)
            kind = kind_of((mode_t)DTTOIF(entry->d_type));
        else if (fstatat(fd, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0)
            kind = kind_of(st.st_mode);
        else
            continue; // gone since it was listed
        if (add_entry(rt, &list, count, entry->d_name, kind))
            error = ENOMEM;
        else
            count++;
    }
    closedir(dir);
    if (count > 0)
        qsort(list, count, sizeof *list, compare_entries);
    result = error ? JS_UNDEFINED : JS_NewArray(ctx);
    for (size_t i = 0; i < count; i++) {
        if (!error && !JS_IsException(result) &&
            (JS_SetPropertyInt64(ctx, result, 2 * (int64_t)i, JS_NewString(ctx, list[i]->name)) < 0 ||
             JS_SetPropertyInt64(ctx, result, 2 * (int64_t)i + 1, JS_NewString(ctx, list[i]->kind)) < 0)) {
            JS_FreeValue(ctx, result);
            result = JS_EXCEPTION;
        }
        js_free_rt(rt, list[i]);
    }
    js_free_rt(rt, list);
    return target_done(ctx, &t, error, "readdir", result);
}

// readLink(root, path): string
static JSValue sys_read_link(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    struct target t;
    char target[PATH_MAX];
    ssize_t n;
    int fd, error = 0;

    (void)this_val;
    (void)argc;
    if (target_args(ctx, argv, &t))
        return JS_EXCEPTION;
    fd = open_path(t.root, t.path, O_PATH | O_NOFOLLOW, 0);
    if (fd < 0)
        return target_done(ctx, &t, errno, "readlink", JS_UNDEFINED);
    n = readlinkat(fd, "", target, sizeof target);
    if (n < 0)
        error = errno == ENOENT ? EINVAL : errno; // ENOENT is what an empty path on a non-link gives
    close(fd);
    return target_done(ctx, &t, error, "readlink", error ? JS_UNDEFINED : JS_NewStringLen(ctx, target, (size_t)n));
}

// Writes all of `data`. Returns 0, or -1 with errno.
static int write_all(int fd, const char *data, size_t length)
{
    while (length > 0) {
        ssize_t n = write(fd, data, length);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        data += n;
        length -= (size_t)n;
    }
    return 0;
}

// writeFile(path, text, mode, append): creates a file that must not exist, or appends to one
static JSValue sys_write_file(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    struct target t = {NULL, NULL};
    size_t length;
    const char *data, *call = "open";
    uint32_t mode;
    int fd, error = 0, append = JS_ToBool(ctx, argv[3]);

    (void)this_val;
    (void)argc;
    if (JS_ToUint32(ctx, &mode, argv[2]) || !(t.path = text_arg(ctx, argv[0])))
        return JS_EXCEPTION;
    data = JS_ToCStringLen(ctx, &length, argv[1]);
    if (!data) {
        JS_FreeCString(ctx, t.path);
        return JS_EXCEPTION;
    }
    fd = open_path(NULL, t.path, O_WRONLY | O_CREAT | O_NOCTTY | (append ? O_APPEND : O_EXCL), mode);
    if (fd < 0) {
        error = errno;
    } else {
        call = "write";
        if (write_all(fd, data, length) < 0)
            error = errno;
        // Some file systems report a failed write only here.
        if (close(fd) < 0 && !error)
            error = errno;
    }
    JS_FreeCString(ctx, data);
    return target_done(ctx, &t, error, call, JS_UNDEFINED);
}

// The calls on a path and up to two numbers that give nothing back.
enum path_call { CALL_CHMOD, CALL_CHOWN, CALL_UNLINK, CALL_MKDIR };

static JSValue sys_path_call(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv, int magic)
{
    struct target t = {NULL, NULL};
    const char *call = "";
    uint32_t a = 0, b = 0;
    int failed = -1;

    (void)this_val;
    if ((argc > 1 && JS_ToUint32(ctx, &a, argv[1])) || (argc > 2 && JS_ToUint32(ctx, &b, argv[2])) ||
        !(t.path = text_arg(ctx, argv[0])))
        return JS_EXCEPTION;
    switch ((enum path_call)magic) {
    case CALL_CHMOD:
        call = "chmod";
        failed = chmod(t.path, a);
        break;
    case CALL_CHOWN:
        call = "lchown";
        failed = lchown(t.path, a, b);
        break;
    case CALL_UNLINK:
        call = "unlink";
        failed = unlink(t.path);
        break;
    case CALL_MKDIR:
        call = "mkdir";
        failed = mkdir(t.path, a);
        break;
    }
    return target_done(ctx, &t, failed ? errno : 0, call, JS_UNDEFINED);
}

static JSValue sys_rename(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    struct target t = {NULL, NULL};
    const char *to;
    int error;

    (void)this_val;
    (void)argc;
    if (!(t.path = text_arg(ctx, argv[0])))
        return JS_EXCEPTION;
    to = text_arg(ctx, argv[1]);
    if (!to) {
        target_free(ctx, &t);
        return JS_EXCEPTION;
    }
    error = rename(t.path, to) < 0 ? errno : 0;
    JS_FreeCString(ctx, to);
    return target_done(ctx, &t, error, "rename", JS_UNDEFINED);
}

// print(fd, text): a reader that went away is not an error
static JSValue sys_print(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    size_t length;
    int32_t fd;
    const char *data;
    int failed;

    (void)this_val;
    (void)argc;
    if (JS_ToInt32(ctx, &fd, argv[0]) || !(data = JS_ToCStringLen(ctx, &length, argv[1])))
        return JS_EXCEPTION;
    failed = write_all(fd, data, length) < 0 && errno != EPIPE && errno != EBADF;
    JS_FreeCString(ctx, data);
    return failed ? fail(ctx, errno, "write", "") : JS_UNDEFINED;
}

static JSValue sys_getenv(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    const char *name = text_arg(ctx, argv[0]), *value;

    (void)this_val;
    (void)argc;
    if (!name)
        return JS_EXCEPTION;
    value = getenv(name);
    JS_FreeCString(ctx, name);
    return value ? JS_NewString(ctx, value) : JS_UNDEFINED;
}

static JSValue sys_cwd(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    char path[PATH_MAX];

    (void)this_val;
    (void)argc;
    (void)argv;
    return getcwd(path, sizeof path) ? JS_NewString(ctx, path) : fail(ctx, errno, "getcwd", "");
}

static JSValue sys_now(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    struct timespec now;

    (void)this_val;
    (void)argc;
    (void)argv;
    if (clock_gettime(CLOCK_REALTIME, &now) < 0)
        return fail(ctx, errno, "clock_gettime", "");
    return JS_NewInt64(ctx, (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000);
}

// The argument vector of a program that takes over from us: `path`, then our own arguments from number `from` on, as
// the bytes that we were given. NULL with an exception pending; freed by the caller.
static char **tail_argv(JSContext *ctx, const char *path, JSValueConst from_arg)
{
    int32_t from;
    char **list;
    size_t n = 0;

    if (JS_ToInt32(ctx, &from, from_arg))
        return NULL;
    list = js_mallocz(ctx, ((size_t)program_argc + 2) * sizeof *list);
    if (!list)
        return NULL;
    list[n++] = (char *)path;
    for (int i = from < 1 ? 1 : from; i < program_argc; i++)
        list[n++] = program_argv[i];
    return list;
}

// exec(path, from): becomes `path` with our arguments from `from` on
static JSValue sys_exec(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    struct target t = {NULL, NULL};
    char **list;
    int error;

    (void)this_val;
    (void)argc;
    if (!(t.path = text_arg(ctx, argv[0])))
        return JS_EXCEPTION;
    list = tail_argv(ctx, t.path, argv[1]);
    if (!list) {
        target_free(ctx, &t);
        return JS_EXCEPTION;
    }
#ifdef SLUICE_FREE_AT_EXIT
    __lsan_do_leak_check(); // there is no exit at which it would be done
#endif
    execve(t.path, list, environ);
    error = errno;
    js_free(ctx, list);
    return target_done(ctx, &t, error, "execve", JS_UNDEFINED);
}

// Waits for `child` and passes on every signal that reaches us meanwhile. All signals are blocked.
// Returns the wait status, or -1 with errno.
static int wait_forwarding(pid_t child)
{
    sigset_t all;
    int status;

    sigfillset(&all);
    for (;;) {
        siginfo_t info;
        int number;
        pid_t done = waitpid(child, &status, WNOHANG);

        if (done == child)
            return status;
        if (done < 0)
            return -1;
        number = sigwaitinfo(&all, &info);
        if (number > 0 && number != SIGCHLD)
            kill(child, number); // a child that has just ended is reaped by the next turn
    }
}

// run(path, from): as exec, in a child that dies with us; gives its exit code. A child killed by a signal kills us
// with the same one, so that whoever waits for us sees what it would have seen.
static JSValue sys_run(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    struct target t = {NULL, NULL};
    struct sigaction by_default = {.sa_handler = SIG_DFL}, child_action;
    sigset_t all, before;
    char **list;
    pid_t parent = getpid(), child;
    volatile int exec_error = 0; // written by the child, in our memory
    int status, error;

    (void)this_val;
    (void)argc;
    if (!(t.path = text_arg(ctx, argv[0])))
        return JS_EXCEPTION;
    list = tail_argv(ctx, t.path, argv[1]);
    if (!list) {
        target_free(ctx, &t);
        return JS_EXCEPTION;
    }
    sigfillset(&all);
    // An inherited "ignore" for SIGCHLD would let the kernel reap the child and lose its exit code.
    if (sigaction(SIGCHLD, &by_default, &child_action) < 0 || sigprocmask(SIG_SETMASK, &all, &before) < 0) {
        error = errno;
        js_free(ctx, list);
        return target_done(ctx, &t, error, "sigprocmask", JS_UNDEFINED);
    }
    // vfork: the child borrows our memory until it becomes the program, which spares copying our page tables.
    child = vfork();
    if (child == 0) {
        if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != parent ||
            sigaction(SIGCHLD, &child_action, NULL) < 0 || sigprocmask(SIG_SETMASK, &before, NULL) < 0)
            _exit(127);
        execve(t.path, list, environ);
        exec_error = errno;
        _exit(127);
    }
    status = child < 0 ? -1 : wait_forwarding(child);
    error = errno;
    sigaction(SIGCHLD, &child_action, NULL);
    sigprocmask(SIG_SETMASK, &before, NULL);
    js_free(ctx, list);
    if (status == -1)
        return target_done(ctx, &t, error, child < 0 ? "vfork" : "waitpid", JS_UNDEFINED);
    if (exec_error)
        return target_done(ctx, &t, exec_error, "execve", JS_UNDEFINED);
    target_free(ctx, &t);
    if (WIFSIGNALED(status)) {
        int number = WTERMSIG(status);

        sigaction(number, &by_default, NULL);
        kill(parent, number);
        return JS_NewInt32(ctx, 128 + number); // a signal that does not kill us after all (we are a PID 1)
    }
    return JS_NewInt32(ctx, WEXITSTATUS(status));
}

// What follows is no system call. It is here since the interpreter is too slow for it: in TypeScript each would cost more
// than a tenth of all that a container start may cost.

// The text of the last jsonEnd: one text is asked for many of its places, and to read it for each would take the square
// of its length. It is held, so that no other text can come to lie where it is.
static struct {
    int held;
    JSValue value;
    const char *chars;
    size_t length;
    int ascii;
} scanned;

// 0, or -1 with an exception pending.
static int scan_text(JSContext *ctx, JSValueConst value)
{
    int64_t units;

    if (scanned.held && JS_IsString(value) && JS_VALUE_GET_TAG(value) == JS_VALUE_GET_TAG(scanned.value) &&
        JS_VALUE_GET_PTR(value) == JS_VALUE_GET_PTR(scanned.value))
        return 0;
    if (scanned.held) {
        scanned.held = 0;
        JS_FreeCString(ctx, scanned.chars);
        JS_FreeValue(ctx, scanned.value);
    }
    if (JS_GetLength(ctx, value, &units) || !(scanned.chars = JS_ToCStringLen(ctx, &scanned.length, value)))
        return -1;
    scanned.ascii = (int64_t)scanned.length == units;
    scanned.value = JS_DupValue(ctx, value);
    scanned.held = 1;
    return 0;
}

// jsonEnd(text, start): where the JSON value that starts there ends; -1 where the text is not ASCII (its places would
// not be those of the UTF-16 string), or ends before the value does. The text was parsed before: only brackets, braces
// and strings are looked at.
static JSValue sys_json_end(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    int64_t start, depth = 0, end = -1;
    int in_string = 0;

    (void)this_val;
    (void)argc;
    if (JS_ToInt64(ctx, &start, argv[1]) || scan_text(ctx, argv[0]))
        return JS_EXCEPTION;
    if (scanned.ascii && start >= 0) {
        for (size_t i = (size_t)start; i < scanned.length && end < 0; i++) {
            char c = scanned.chars[i];

            if (in_string) {
                if (c == '\\')
                    i++;
                else if (c == '"')
                    in_string = 0;
            } else if (c == '"') {
                in_string = 1;
            } else if (c == '{' || c == '[') {
                depth++;
            } else if (c == '}' || c == ']') {
                depth--;
            }
            if (depth <= 0 && !in_string)
                end = (int64_t)i + 1;
        }
    }
    return JS_NewInt64(ctx, end);
}

// SHA-256 (FIPS 180-4).
struct sha256 {
    uint32_t state[8];
    uint8_t block[64];
};

static const uint32_t sha256_round[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotate_right(uint32_t x, int by)
{
    return x >> by | x << (32 - by);
}

static void sha256_block(struct sha256 *h)
{
    uint32_t w[64], *s = h->state, v[8];

    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)h->block[4 * i] << 24 | (uint32_t)h->block[4 * i + 1] << 16 |
               (uint32_t)h->block[4 * i + 2] << 8 | h->block[4 * i + 3];
    for (int i = 16; i < 64; i++)
        w[i] = w[i - 16] + w[i - 7] +
               (rotate_right(w[i - 15], 7) ^ rotate_right(w[i - 15], 18) ^ w[i - 15] >> 3) +
               (rotate_right(w[i - 2], 17) ^ rotate_right(w[i - 2], 19) ^ w[i - 2] >> 10);
    memcpy(v, s, sizeof v);
    // The working variables a to h move by one place a round; eight rounds a turn let each keep its place instead.
    for (int i = 0; i < 64; i += 8) {
#define ROUND(n, a, b, c, d, e, f, g, h)                                                                               \
    h += (rotate_right(e, 6) ^ rotate_right(e, 11) ^ rotate_right(e, 25)) + (g ^ (e & (f ^ g))) +                      \
         sha256_round[i + n] + w[i + n];                                                                               \
    d += h;                                                                                                            \
    h += (rotate_right(a, 2) ^ rotate_right(a, 13) ^ rotate_right(a, 22)) + ((a & b) | (c & (a | b)));
        ROUND(0, v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7])
        ROUND(1, v[7], v[0], v[1], v[2], v[3], v[4], v[5], v[6])
        ROUND(2, v[6], v[7], v[0], v[1], v[2], v[3], v[4], v[5])
        ROUND(3, v[5], v[6], v[7], v[0], v[1], v[2], v[3], v[4])
        ROUND(4, v[4], v[5], v[6], v[7], v[0], v[1], v[2], v[3])
        ROUND(5, v[3], v[4], v[5], v[6], v[7], v[0], v[1], v[2])
        ROUND(6, v[2], v[3], v[4], v[5], v[6], v[7], v[0], v[1])
        ROUND(7, v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[0])
#undef ROUND
    }
    for (int i = 0; i < 8; i++)
        s[i] += v[i];
}

// sha256(text): 64 hexadecimal digits, over the text's UTF-8
static JSValue sys_sha256(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    struct sha256 h = {.state = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab,
                                 0x5be0cd19}};
    size_t length, rest;
    const char *data = JS_ToCStringLen(ctx, &length, argv[0]);
    char hex[65];

    (void)this_val;
    (void)argc;
    if (!data)
        return JS_EXCEPTION;
    for (size_t i = 0; i + 64 <= length; i += 64) {
        memcpy(h.block, data + i, 64);
        sha256_block(&h);
    }
    rest = length % 64;
    memset(h.block, 0, sizeof h.block);
    memcpy(h.block, data + length - rest, rest);
    JS_FreeCString(ctx, data);
    h.block[rest] = 0x80;
    if (rest >= 56) {
        sha256_block(&h);
        memset(h.block, 0, sizeof h.block);
    }
    for (int i = 0; i < 8; i++)
        h.block[63 - i] = (uint8_t)((uint64_t)length * 8 >> 8 * i);
    sha256_block(&h);
    for (int i = 0; i < 8; i++)
        snprintf(hex + 8 * i, 9, "%08x", h.state[i]);
    return JS_NewStringLen(ctx, hex, 64);
}

static const JSCFunctionListEntry functions[] = {
    JS_CFUNC_DEF("jsonEnd", 2, sys_json_end),
    JS_CFUNC_DEF("sha256", 1, sys_sha256),
    JS_CFUNC_DEF("readText", 3, sys_read_text),
    JS_CFUNC_DEF("readBytes", 4, sys_read_bytes),
    JS_CFUNC_DEF("stat", 3, sys_stat),
    JS_CFUNC_DEF("stamps", 3, sys_stamps),
    JS_CFUNC_DEF("list", 2, sys_list),
    JS_CFUNC_DEF("readLink", 2, sys_read_link),
    JS_CFUNC_DEF("writeFile", 4, sys_write_file),
    JS_CFUNC_MAGIC_DEF("chmod", 2, sys_path_call, CALL_CHMOD),
    JS_CFUNC_MAGIC_DEF("chown", 3, sys_path_call, CALL_CHOWN),
    JS_CFUNC_MAGIC_DEF("unlink", 1, sys_path_call, CALL_UNLINK),
    JS_CFUNC_MAGIC_DEF("mkdir", 2, sys_path_call, CALL_MKDIR),
    JS_CFUNC_DEF("rename", 2, sys_rename),
    JS_CFUNC_DEF("print", 2, sys_print),
    JS_CFUNC_DEF("getenv", 1, sys_getenv),
    JS_CFUNC_DEF("cwd", 0, sys_cwd),
    JS_CFUNC_DEF("now", 0, sys_now),
    JS_CFUNC_DEF("exec", 2, sys_exec),
    JS_CFUNC_DEF("run", 2, sys_run),
};

int sluice_sysmod_init(JSContext *ctx)
{
    JSValue global = JS_GetGlobalObject(ctx);
    JSValue object = JS_NewObject(ctx);
    int bad = JS_IsException(object) || JS_SetPropertyFunctionList(ctx, object, functions, countof(functions)) < 0 ||
              JS_SetPropertyStr(ctx, global, "native", object) < 0;

    JS_FreeValue(ctx, global);
    return bad ? -1 : 0;
}

int sluice_sysmod_start(JSContext *ctx, int argc, char **argv)
{
    JSValue global = JS_GetGlobalObject(ctx);
    JSValue object = JS_GetPropertyStr(ctx, global, "native");
    JSValue args = JS_NewArray(ctx);
    int bad = JS_IsException(args);

    program_argc = argc;
    program_argv = argv;
    for (int i = 0; i < argc && !bad; i++)
        bad = JS_SetPropertyInt64(ctx, args, i, JS_NewString(ctx, argv[i])) < 0;
    if (bad)
        JS_FreeValue(ctx, args);
    bad = bad || JS_SetPropertyStr(ctx, object, "args", args) < 0 ||
          JS_SetPropertyStr(ctx, object, "euid", JS_NewInt64(ctx, geteuid())) < 0;
    JS_FreeValue(ctx, object);
    JS_FreeValue(ctx, global);
    return bad ? -1 : 0;
}
