// SPDX-License-Identifier: Apache-2.0
//
// The system calls of the executable, as functions of one JavaScript object. Wrappers without policy: each checks its
// arguments, makes the call, and throws {code, syscall, path} on failure. src/sys/native.ts says what they mean.
//
// Rules: every descriptor is opened O_CLOEXEC and closed in the function that opened it, but those that it gives; a path with
// a NUL in it is EINVAL (it would name another file); `root` is undefined or a folder beneath which the path and every
// link on its way must resolve (openat2, RESOLVE_IN_ROOT). What writes beneath a root opens the folder that way and then
// names only the entry in it, so that nothing is resolved twice.

#define _GNU_SOURCE
#include "sysmod.h"

#include "bulk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/stat.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
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
const char *sluice_text_arg(JSContext *ctx, JSValueConst value)
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

// Opens `path` beneath the folder `root`. Returns the descriptor, or -1 with errno.
static int open_beneath(int root, const char *path, int flags, mode_t mode)
{
    struct open_how how = {
        .flags = (unsigned)(flags | O_CLOEXEC),
        .mode = flags & O_CREAT ? mode : 0,
        .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
    };

    return (int)syscall(SYS_openat2, root, path, &how, sizeof how);
}

static int open_root(const char *root)
{
    // musl's open() would set O_CLOEXEC once more, with a call of its own.
    return (int)syscall(SYS_openat, AT_FDCWD, root, O_PATH | O_DIRECTORY | O_CLOEXEC);
}

// Opens `path`, beneath `root` where that is not NULL. Returns the descriptor, or -1 with errno.
static int open_path(const char *root, const char *path, int flags, mode_t mode)
{
    int root_fd, fd, saved;

    if (!root)
        return open(path, flags | O_CLOEXEC, mode);
    root_fd = open_root(root);
    if (root_fd < 0)
        return -1;
    fd = open_beneath(root_fd, path, flags, mode);
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
    if (!JS_IsUndefined(argv[0]) && !(t->root = sluice_text_arg(ctx, argv[0])))
        return -1;
    if (!(t->path = sluice_text_arg(ctx, argv[1]))) {
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

// Bytes that were read, and the room for them, which js_malloc_rt gave.
struct buffer {
    char *data;
    size_t size, room;
};

// Room for one byte more. 0, or an errno.
static int buffer_grow(JSRuntime *rt, struct buffer *b)
{
    char *larger;

    if (b->size < b->room)
        return 0;
    larger = js_realloc_rt(rt, b->data, b->room ? b->room * 2 : 4096);
    if (!larger)
        return ENOMEM;
    b->room = b->room ? b->room * 2 : 4096;
    b->data = larger;
    return 0;
}

// Reads on until the end; EFBIG where that is more than `limit` bytes. 0, or an errno: EAGAIN where a descriptor that
// does not block has no more for now.
static int buffer_fill(JSRuntime *rt, struct buffer *b, int fd, int64_t limit)
{
    for (;;) {
        int error = buffer_grow(rt, b);
        ssize_t n;

        if (error)
            return error;
        n = read(fd, b->data + b->size, b->room - b->size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno;
        if (n == 0)
            return 0;
        b->size += (size_t)n;
        if ((int64_t)b->size > limit)
            return EFBIG;
    }
}

// readText(root, path, limit): string
static JSValue sys_read_text(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    struct target t;
    JSRuntime *rt = JS_GetRuntime(ctx);
    int64_t limit;
    struct stat st;
    struct buffer text = {NULL, 0, 0};
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
        text.room = st.st_size > 0 ? (size_t)st.st_size + 1 : 4096;
        text.data = js_malloc_rt(rt, text.room);
        error = text.data ? buffer_fill(rt, &text, fd, limit) : ENOMEM;
    }
    close(fd);
    if (!error && !utf8_valid((const unsigned char *)text.data, text.size))
        error = EILSEQ;
    if (!error)
        result = JS_NewStringLen(ctx, text.data, text.size);
    js_free_rt(rt, text.data);
    return target_done(ctx, &t, error, call, result);
}

// readInput(limit): string, standard input to its end
static JSValue sys_read_input(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    JSRuntime *rt = JS_GetRuntime(ctx);
    struct buffer text = {NULL, 0, 0};
    int64_t limit;
    int error;
    JSValue result;

    (void)this_val;
    (void)argc;
    if (JS_ToInt64(ctx, &limit, argv[0]))
        return JS_EXCEPTION;
    error = buffer_fill(rt, &text, STDIN_FILENO, limit);
    if (!error && !utf8_valid((const unsigned char *)text.data, text.size))
        error = EILSEQ;
    result = error ? fail(ctx, error, "read", "") : JS_NewStringLen(ctx, text.data, text.size);
    js_free_rt(rt, text.data);
    return result;
}

// A string of one character a byte. Through UTF-8, of which the engine makes one of single size; JS_NewStringUTF16 would
// make one of double.
JSValue sluice_byte_string(JSContext *ctx, const unsigned char *data, size_t size)
{
    char *text = js_malloc(ctx, 2 * size + 1);
    size_t used = 0;
    JSValue result;

    if (!text)
        return JS_EXCEPTION;
    for (size_t i = 0; i < size; i++) {
        if (data[i] >= 0x80)
            text[used++] = (char)(0xC0 | data[i] >> 6);
        text[used++] = (char)(data[i] < 0x80 ? data[i] : 0x80 | (data[i] & 0x3F));
    }
    result = JS_NewStringLen(ctx, text, used);
    js_free(ctx, text);
    return result;
}

// readBytes(root, path, offset, length): string of one character a byte
static JSValue sys_read_bytes(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    struct target t;
    JSRuntime *rt = JS_GetRuntime(ctx);
    int64_t offset, length;
    struct stat st;
    unsigned char *data = NULL;
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
        if (!data)
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
    if (!error)
        result = sluice_byte_string(ctx, data, size);
    js_free_rt(rt, data);
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

// The names of a stat's fields, looked up once: that is most of the cost of such an object.
static JSAtom stat_fields[9];

static void name_stat_fields(JSContext *ctx)
{
    static const char *names[countof(stat_fields)] = {"kind",  "mode",  "uid",   "gid",    "size",
                                                      "major", "minor", "stamp", "ctimeMs"};

    for (size_t i = 0; i < countof(names); i++)
        stat_fields[i] = JS_NewAtom(ctx, names[i]);
}

static JSValue stat_object(JSContext *ctx, const struct stat *st)
{
    int node = S_ISCHR(st->st_mode) || S_ISBLK(st->st_mode);
    char stamp[STAMP_MAX];

    if (stat_fields[0] == JS_ATOM_NULL)
        name_stat_fields(ctx);
    write_stamp(stamp, st);
    JSValue values[countof(stat_fields)] = {
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
    return JS_NewObjectFrom(ctx, countof(values), stat_fields, values); // takes the values
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

// treeMounted(root, path): string, the stamp of what is mounted at the path by itself; empty where nothing is, or where the
// kernel (before Linux 5.8) does not tell
static JSValue sys_tree_mounted(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    struct target t;
    struct statx info;
    struct stat st;
    char stamp[STAMP_MAX] = "";
    int fd, error = 0;

    (void)this_val;
    (void)argc;
    if (target_args(ctx, argv, &t))
        return JS_EXCEPTION;
    fd = open_path(t.root, t.path, O_PATH, 0);
    if (fd < 0 || syscall(SYS_statx, fd, "", AT_EMPTY_PATH, 0, &info) < 0)
        error = errno;
    else if (info.stx_attributes & STATX_ATTR_MOUNT_ROOT) {
        if (fstat(fd, &st) < 0)
            error = errno;
        else
            write_stamp(stamp, &st);
    }
    if (fd >= 0)
        close(fd);
    return target_done(ctx, &t, is_absent(error) ? 0 : error, "stat", JS_NewString(ctx, stamp));
}

// stamps(root, dir, names): string, the stamps of the entries, links followed, between tabs; empty for one that is gone
static JSValue sys_stamps(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    struct target t;
    int64_t count = 0;
    int dir, root = -1, error = 0;
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
    if (t.root && (root = open_root(t.root)) < 0) {
        error = errno;
        close(dir);
        return target_done(ctx, &t, error, "open", JS_UNDEFINED);
    }
    text = js_malloc(ctx, (size_t)(count + 1) * STAMP_MAX);
    if (!text)
        result = JS_EXCEPTION;
    for (int64_t i = 0; i < count && !error && !JS_IsException(result); i++) {
        JSValue item = JS_GetPropertyInt64(ctx, argv[2], i);
        const char *name = JS_IsException(item) ? NULL : sluice_text_arg(ctx, item);
        struct stat st;
        int fd = -1, failed, plain;

        if (i > 0)
            text[length++] = '\t';
        JS_FreeValue(ctx, item);
        if (!name) {
            result = JS_EXCEPTION;
            break;
        }
        // Beneath a root a link must be followed beneath it too, so the whole path goes through openat2: that of a link,
        // and of what is not the plain name of an entry.
        plain = !strchr(name, '/') && strcmp(name, "..") != 0;
        failed = !t.root || plain ? fstatat(dir, name, &st, t.root ? AT_SYMLINK_NOFOLLOW : 0) : 0;
        if (t.root && (!plain || (!failed && S_ISLNK(st.st_mode)))) {
            char path[PATH_MAX];

            if ((size_t)snprintf(path, sizeof path, "%s/%s", t.path, name) >= sizeof path) {
                errno = ENAMETOOLONG;
                failed = -1;
            } else {
                fd = open_beneath(root, path, O_PATH, 0);
                failed = fd < 0 ? -1 : fstat(fd, &st);
            }
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
    if (root >= 0)
        close(root);
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

// realPath(path): the same place without links, "." and ".."
static JSValue sys_real_path(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    struct target t = {NULL, NULL};
    char real[PATH_MAX];
    int error;

    (void)this_val;
    (void)argc;
    if (!(t.path = sluice_text_arg(ctx, argv[0])))
        return JS_EXCEPTION;
    error = realpath(t.path, real) ? 0 : errno;
    return target_done(ctx, &t, error, "realpath", error ? JS_UNDEFINED : JS_NewString(ctx, real));
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
    if (JS_ToUint32(ctx, &mode, argv[2]) || !(t.path = sluice_text_arg(ctx, argv[0])))
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
        !(t.path = sluice_text_arg(ctx, argv[0])))
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
    if (!(t.path = sluice_text_arg(ctx, argv[0])))
        return JS_EXCEPTION;
    to = sluice_text_arg(ctx, argv[1]);
    if (!to) {
        target_free(ctx, &t);
        return JS_EXCEPTION;
    }
    error = rename(t.path, to) < 0 ? errno : 0;
    JS_FreeCString(ctx, to);
    return target_done(ctx, &t, error, "rename", JS_UNDEFINED);
}

// The folder of a path beneath a root, opened, and the last name of the path. The descriptor, or -1 with errno.
static int open_parent(const struct target *t, const char **name)
{
    const char *slash = strrchr(t->path, '/');
    char folder[PATH_MAX];
    size_t length = slash ? (size_t)(slash - t->path) : 0;

    *name = slash ? slash + 1 : t->path;
    if (!**name || !strcmp(*name, ".") || !strcmp(*name, "..")) {
        errno = EINVAL; // no name of an entry
        return -1;
    }
    if (length >= sizeof folder) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(folder, t->path, length);
    folder[length] = 0;
    return open_path(t->root, length ? folder : "/", O_PATH | O_DIRECTORY, 0);
}

// A name that no file has. 0, or -1 with errno.
static int draft_name(char name[32])
{
    uint64_t chance;

    if (getrandom(&chance, sizeof chance, 0) != sizeof chance)
        return -1;
    snprintf(name, 32, ".sluice-%016llx", (unsigned long long)chance);
    return 0;
}

// Puts the draft in the entry's place; where that fails, the draft goes. 0, or an errno.
static int put_draft(int dir, const char *draft, const char *name)
{
    int error = renameat(dir, draft, dir, name) < 0 ? errno : 0;

    if (error)
        unlinkat(dir, draft, 0);
    return error;
}

static int symlink_at(int dir, const char *link_target, const char *name)
{
    char draft[32], old[PATH_MAX];
    ssize_t length;

    if (symlinkat(link_target, dir, name) == 0)
        return 0;
    if (errno != EEXIST)
        return errno;
    length = readlinkat(dir, name, old, sizeof old);
    if (length >= 0 && (size_t)length == strlen(link_target) && !memcmp(old, link_target, (size_t)length))
        return 0;
    if (draft_name(draft) < 0 || symlinkat(link_target, dir, draft) < 0)
        return errno;
    return put_draft(dir, draft, name);
}

// treeSymlink(root, target, path): a link, in place of a file or link; one that is right already stays
static JSValue sys_tree_symlink(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    struct target t;
    const char *link_target, *name;
    int dir, error;
    JSValueConst place[] = {argv[0], argv[2]};

    (void)this_val;
    (void)argc;
    if (target_args(ctx, place, &t))
        return JS_EXCEPTION;
    link_target = sluice_text_arg(ctx, argv[1]);
    if (!link_target) {
        target_free(ctx, &t);
        return JS_EXCEPTION;
    }
    dir = open_parent(&t, &name);
    error = dir < 0 ? errno : symlink_at(dir, link_target, name);
    if (dir >= 0)
        close(dir);
    JS_FreeCString(ctx, link_target);
    return target_done(ctx, &t, error, "symlink", JS_UNDEFINED);
}

// Whether it is the name of an entry, and no path.
static int is_entry_name(const char *name)
{
    return *name && !strchr(name, '/') && strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

// The text of an array's item, to be freed with JS_FreeCString; NULL with an exception pending.
static const char *item_text(JSContext *ctx, JSValueConst array, int64_t i)
{
    JSValue item = JS_GetPropertyInt64(ctx, array, i);
    const char *text = JS_IsException(item) ? NULL : sluice_text_arg(ctx, item);

    JS_FreeValue(ctx, item);
    return text;
}

// Whether the entry of a folder leads to something, beneath `root`, to which the folder's `path` belongs. 1 or 0, or -1 with
// errno.
static int leads_beneath(const char *root, const char *path, int dir, const char *name)
{
    struct stat st;
    char whole[PATH_MAX];
    int fd;

    if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return is_absent(errno) ? 0 : -1;
    if (!S_ISLNK(st.st_mode))
        return 1;
    if ((size_t)snprintf(whole, sizeof whole, "%s/%s", path, name) >= sizeof whole) {
        errno = ENAMETOOLONG;
        return -1;
    }
    fd = open_path(root, whole, O_PATH, 0);
    if (fd >= 0)
        close(fd);
    return fd >= 0 ? 1 : is_absent(errno) || errno == ELOOP ? 0 : -1;
}

// treeLinks(root, dir, names, targets): boolean[], links of one folder, which is opened once, to entries of it, where these
// are there; which ones are
static JSValue sys_tree_links(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    struct target t;
    int64_t count = 0;
    int dir;
    JSValue result;

    (void)this_val;
    (void)argc;
    if (JS_GetLength(ctx, argv[2], &count) || target_args(ctx, argv, &t))
        return JS_EXCEPTION;
    dir = open_path(t.root, t.path, O_PATH | O_DIRECTORY, 0);
    if (dir < 0)
        return target_done(ctx, &t, errno, "open", JS_UNDEFINED);
    result = JS_NewArray(ctx);
    for (int64_t i = 0; i < count && !JS_IsException(result); i++) {
        const char *name = item_text(ctx, argv[2], i);
        const char *link_target = name ? item_text(ctx, argv[3], i) : NULL;
        int there = -1;

        if (link_target) {
            int error = EINVAL;

            if (is_entry_name(name) && is_entry_name(link_target)) {
                there = leads_beneath(t.root, t.path, dir, link_target);
                error = there < 0 ? errno : there && strcmp(name, link_target) ? symlink_at(dir, link_target, name) : 0;
            }
            if (error) {
                char path[2 * PATH_MAX];

                snprintf(path, sizeof path, "%s/%s", t.path, name);
                JS_FreeValue(ctx, result);
                result = fail(ctx, error, "symlink", path);
            }
            JS_FreeCString(ctx, link_target);
        }
        if (name)
            JS_FreeCString(ctx, name);
        if (!link_target || (!JS_IsException(result) && JS_SetPropertyInt64(ctx, result, i, JS_NewBool(ctx, there)) < 0)) {
            JS_FreeValue(ctx, result);
            result = JS_EXCEPTION;
        }
    }
    close(dir);
    target_free(ctx, &t);
    return result;
}

// The bytes of a string of one character a byte, in the place of its UTF-8. Their number, or -1 where it is none.
ssize_t sluice_bytes_of(char *text, size_t length)
{
    size_t size = 0;

    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)text[i];

        if (c >= 0xC4)
            return -1; // beyond U+00FF
        text[size++] = (char)(c < 0x80 ? c : (c & 0x03) << 6 | (text[++i] & 0x3F));
    }
    return (ssize_t)size;
}

static int write_at(int dir, const char *name, const char *bytes, size_t size, mode_t mode)
{
    char draft[32];
    struct stat old;
    int fd, failed, error = 0, replaces = fstatat(dir, name, &old, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(old.st_mode);

    if (draft_name(draft) < 0)
        return errno;
    fd = openat(dir, draft, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return errno;
    // The owner before the mode: a change of owner clears setuid and setgid.
    failed = write_all(fd, bytes, size) < 0 || (replaces && fchown(fd, old.st_uid, old.st_gid) < 0) ||
             fchmod(fd, replaces ? old.st_mode & 07777 : mode) < 0;
    if (failed)
        error = errno;
    if (close(fd) < 0 && !error)
        error = errno;
    if (!error)
        return put_draft(dir, draft, name);
    unlinkat(dir, draft, 0);
    return error;
}

// treeWrite(root, path, bytes, mode): a file, in place of a file or link; it keeps the owner and mode of such a file
static JSValue sys_tree_write(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    struct target t;
    JSRuntime *rt = JS_GetRuntime(ctx);
    const char *text, *name;
    char *bytes;
    size_t length;
    ssize_t size;
    uint32_t mode;
    int dir = -1, error = 0;

    (void)this_val;
    (void)argc;
    if (JS_ToUint32(ctx, &mode, argv[3]) || target_args(ctx, argv, &t))
        return JS_EXCEPTION;
    text = JS_ToCStringLen(ctx, &length, argv[2]);
    if (!text) {
        target_free(ctx, &t);
        return JS_EXCEPTION;
    }
    bytes = js_malloc_rt(rt, length + 1);
    if (!bytes) {
        error = ENOMEM;
    } else {
        memcpy(bytes, text, length);
        size = sluice_bytes_of(bytes, length);
        if (size < 0)
            error = EINVAL;
        else if ((dir = open_parent(&t, &name)) < 0)
            error = errno;
        else
            error = write_at(dir, name, bytes, (size_t)size, mode);
    }
    if (dir >= 0)
        close(dir);
    js_free_rt(rt, bytes);
    JS_FreeCString(ctx, text);
    return target_done(ctx, &t, error, "write", JS_UNDEFINED);
}

// treeMkdir(root, path, mode): one folder
static JSValue sys_tree_mkdir(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    struct target t;
    const char *name;
    uint32_t mode;
    int dir, error;

    (void)this_val;
    (void)argc;
    if (JS_ToUint32(ctx, &mode, argv[2]) || target_args(ctx, argv, &t))
        return JS_EXCEPTION;
    dir = open_parent(&t, &name);
    error = dir < 0 || mkdirat(dir, name, mode) < 0 ? errno : 0;
    if (dir >= 0)
        close(dir);
    return target_done(ctx, &t, error, "mkdir", JS_UNDEFINED);
}

// The file at `source` as a mount over that at `target`: read-only, without set-user-ID, devices and programs, and
// private. It has all that before it appears. 0, or an errno.
static int bind_fd(int source, int target)
{
    struct mount_attr attributes = {
        .attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC,
        .propagation = MS_PRIVATE,
    };
    struct stat st;
    int mount_fd, error = 0;

    if (fstat(source, &st) < 0 || (S_ISREG(st.st_mode) && fstat(target, &st) < 0))
        return errno;
    if (!S_ISREG(st.st_mode))
        return EINVAL;
    mount_fd = (int)syscall(SYS_open_tree, source, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
    if (mount_fd < 0)
        return errno;
    if (syscall(SYS_mount_setattr, mount_fd, "", AT_EMPTY_PATH, &attributes, sizeof attributes) < 0 ||
        syscall(SYS_move_mount, mount_fd, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0)
        error = errno;
    close(mount_fd);
    return error;
}

// treeBind(root, source, path): the file `source`, which is not beneath the root, over the file at `path`
static JSValue sys_tree_bind(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    struct target t;
    const char *source;
    int source_fd, target_fd, error;
    JSValueConst place[] = {argv[0], argv[2]};

    (void)this_val;
    (void)argc;
    if (target_args(ctx, place, &t))
        return JS_EXCEPTION;
    source = sluice_text_arg(ctx, argv[1]);
    if (!source) {
        target_free(ctx, &t);
        return JS_EXCEPTION;
    }
    source_fd = open_path(NULL, source, O_PATH, 0);
    if (source_fd < 0) {
        // Of the two paths this is the one that failed.
        JSValue thrown = fail(ctx, errno, "open", source);

        JS_FreeCString(ctx, source);
        target_free(ctx, &t);
        return thrown;
    }
    target_fd = open_path(t.root, t.path, O_PATH, 0);
    error = target_fd < 0 ? errno : bind_fd(source_fd, target_fd);
    if (target_fd >= 0)
        close(target_fd);
    close(source_fd);
    JS_FreeCString(ctx, source);
    return target_done(ctx, &t, error, "mount", JS_UNDEFINED);
}

// treeWritable(root): the descriptor of a copy of the folder's mounts, of which the uppermost can be written to. The copy
// stands nowhere, so that nobody else sees it; it goes with its descriptor.
static JSValue sys_tree_writable(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    struct mount_attr attributes = {.attr_clr = MOUNT_ATTR_RDONLY};
    struct target t = {NULL, NULL};
    const char *call = "open_tree";
    int fd, error = 0;

    (void)this_val;
    (void)argc;
    if (!(t.path = sluice_text_arg(ctx, argv[0])))
        return JS_EXCEPTION;
    fd = (int)syscall(SYS_open_tree, AT_FDCWD, t.path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);
    if (fd < 0) {
        error = errno;
    } else if (syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH, &attributes, sizeof attributes) < 0) {
        error = errno;
        call = "mount_setattr";
        close(fd);
    }
    return target_done(ctx, &t, error, call, JS_NewInt32(ctx, fd));
}

// lock(path): the descriptor of the file, which is created where it is missing, locked for us alone
static JSValue sys_lock(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    struct target t = {NULL, NULL};
    const char *call = "open";
    int fd, error = 0;

    (void)this_val;
    (void)argc;
    if (!(t.path = sluice_text_arg(ctx, argv[0])))
        return JS_EXCEPTION;
    fd = open_path(NULL, t.path, O_RDONLY | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, 0600);
    if (fd < 0) {
        error = errno;
    } else {
        call = "flock";
        while (!error && flock(fd, LOCK_EX) < 0)
            if (errno != EINTR)
                error = errno;
        if (error)
            close(fd);
    }
    return target_done(ctx, &t, error, call, JS_NewInt32(ctx, fd));
}

// unlock(fd): lets go of a lock, by closing its descriptor
static JSValue sys_unlock(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    int32_t fd;

    (void)this_val;
    (void)argc;
    if (JS_ToInt32(ctx, &fd, argv[0]))
        return JS_EXCEPTION;
    return close(fd) < 0 ? fail(ctx, errno, "close", "") : JS_UNDEFINED;
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
    const char *name = sluice_text_arg(ctx, argv[0]), *value;

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

// sleep(ms)
static JSValue sys_sleep(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    struct timespec left;
    int64_t ms;

    (void)this_val;
    (void)argc;
    if (JS_ToInt64(ctx, &ms, argv[0]))
        return JS_EXCEPTION;
    if (ms <= 0)
        return JS_UNDEFINED;
    left.tv_sec = ms / 1000;
    left.tv_nsec = ms % 1000 * 1000000;
    while (nanosleep(&left, &left) < 0)
        if (errno != EINTR)
            return fail(ctx, errno, "nanosleep", "");
    return JS_UNDEFINED;
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
    if (!(t.path = sluice_text_arg(ctx, argv[0])))
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
    if (!(t.path = sluice_text_arg(ctx, argv[0])))
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

// The strings of a JavaScript array, behind `first` where that is not NULL, and NULL behind them. NULL with an exception
// pending.
static const char **string_list(JSContext *ctx, const char *first, JSValueConst array)
{
    const char **list;
    int64_t length;
    size_t n = 0;

    if (JS_GetLength(ctx, array, &length))
        return NULL;
    list = js_mallocz(ctx, ((size_t)length + 2) * sizeof *list);
    if (!list)
        return NULL;
    if (first)
        list[n++] = first;
    for (int64_t i = 0; i < length; i++) {
        JSValue item = JS_GetPropertyInt64(ctx, array, i);

        list[n] = JS_IsException(item) ? NULL : sluice_text_arg(ctx, item);
        JS_FreeValue(ctx, item);
        if (!list[n++]) {
            for (size_t k = first ? 1 : 0; list[k]; k++)
                JS_FreeCString(ctx, list[k]);
            js_free(ctx, list);
            return NULL;
        }
    }
    return list;
}

// Frees the strings from number `from` on.
static void string_list_free(JSContext *ctx, const char **list, size_t from)
{
    if (!list)
        return;
    for (size_t i = from; list[i]; i++)
        JS_FreeCString(ctx, list[i]);
    js_free(ctx, list);
}

static int64_t monotonic_ms(void)
{
    struct timespec now;

    return clock_gettime(CLOCK_MONOTONIC, &now) < 0 ? 0 : (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

// The same descriptor above those of standard input, output and error, which a program may have been started without.
static int above_standard(int fd)
{
    int moved;

    if (fd < 0 || fd > STDERR_FILENO)
        return fd;
    moved = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    close(fd);
    return moved;
}

// Milliseconds that a killed child may take to end. One that is stuck in a driver takes for ever.
#define REAP_MS 200

// Reads what `child` writes into the pipe until it has ended. 0, or an errno; the child has ended then, or was killed
// with its process group. `status` is its wait status.
static int read_child(JSRuntime *rt, pid_t child, int out, int64_t limit, int64_t timeout, struct buffer *b, int *status)
{
    int64_t end = monotonic_ms() + timeout;
    int pidfd = (int)syscall(SYS_pidfd_open, child, 0), error = pidfd < 0 ? errno : 0, ended = 0;
    struct pollfd fds[] = {{.fd = out, .events = POLLIN}, {.fd = pidfd, .events = POLLIN}};

    while (!error && !ended) {
        int64_t left = end - monotonic_ms();
        int ready = left > 0 ? poll(fds, countof(fds), left > INT_MAX ? INT_MAX : (int)left) : 0;

        if (ready < 0 && errno != EINTR) {
            error = errno;
        } else if (ready == 0) {
            error = left > INT_MAX ? 0 : ETIMEDOUT;
        } else if (ready > 0) {
            // What it wrote before it ended is in the pipe by now, whoever else holds the other end.
            ended = fds[1].revents != 0;
            if (fds[0].fd >= 0) {
                error = buffer_fill(rt, b, out, limit);
                if (!error)
                    fds[0].fd = -1;
                else if (error == EAGAIN)
                    error = 0;
            }
        }
    }
    if (error) {
        kill(-child, SIGKILL);
        if (pidfd >= 0)
            poll(fds + 1, 1, REAP_MS);
    }
    if (waitpid(child, status, ended ? 0 : WNOHANG) < 0 && !error)
        error = errno;
    if (pidfd >= 0)
        close(pidfd);
    return error;
}

// Waits until `fd` is ready for one of `events`. 0, or an errno: ETIMEDOUT where that takes until `end`.
static int await_ready(int fd, short events, int64_t end)
{
    struct pollfd p = {.fd = fd, .events = events};

    for (;;) {
        int64_t left = end - monotonic_ms();
        int ready = left > 0 ? poll(&p, 1, left > INT_MAX ? INT_MAX : (int)left) : 0;

        if (ready > 0)
            return 0;
        if (ready == 0 && left <= INT_MAX)
            return ETIMEDOUT;
        if (ready < 0 && errno != EINTR)
            return errno;
    }
}

// Milliseconds between two tries to reach a server that has no room for another caller.
#define RETRY_MS 5

// Connects to the socket of a server that runs as our own user. 0, or an errno: EPERM where another one answers.
static int call_server(int fd, const struct sockaddr_un *address, int64_t end)
{
    struct ucred peer;
    socklen_t size = sizeof(peer);

    while (connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0) {
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN)
            return errno;
        if (monotonic_ms() >= end)
            return ETIMEDOUT;
        poll(NULL, 0, RETRY_MS);
    }
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
        return errno;
    return peer.uid == geteuid() ? 0 : EPERM;
}

// Sends all of it, and reads the answer until the other side has closed. 0, or an errno.
static int converse(JSRuntime *rt, int fd, const char *text, size_t length, int64_t end, struct buffer *b, int64_t limit)
{
    int error = 0;

    while (length > 0 && !error) {
        ssize_t n = send(fd, text, length, MSG_NOSIGNAL);

        if (n >= 0) {
            text += n;
            length -= (size_t)n;
        } else if (errno == EAGAIN) {
            error = await_ready(fd, POLLOUT, end);
        } else if (errno != EINTR) {
            error = errno;
        }
    }
    while (!error) {
        error = buffer_fill(rt, b, fd, limit);
        if (error != EAGAIN)
            break;
        error = await_ready(fd, POLLIN, end);
    }
    return error;
}

// ask(path, text, limit, timeoutMs): string
static JSValue sys_ask(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct target t = {NULL, NULL};
    JSRuntime *rt = JS_GetRuntime(ctx);
    struct buffer answer = {NULL, 0, 0};
    const char *text, *call = "connect";
    size_t length;
    int64_t limit, timeout, end;
    int fd, error;
    JSValue result = JS_UNDEFINED;

    (void)this_val;
    (void)argc;
    if (JS_ToInt64(ctx, &limit, argv[2]) || JS_ToInt64(ctx, &timeout, argv[3]) || !(t.path = sluice_text_arg(ctx, argv[0])))
        return JS_EXCEPTION;
    if (!(text = JS_ToCStringLen(ctx, &length, argv[1]))) {
        target_free(ctx, &t);
        return JS_EXCEPTION;
    }
    end = monotonic_ms() + timeout;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        error = errno;
        call = "socket";
    } else if (strlen(t.path) >= sizeof(address.sun_path)) {
        error = ENAMETOOLONG;
    } else {
        strcpy(address.sun_path, t.path);
        error = call_server(fd, &address, end);
        if (!error) {
            call = "read";
            error = converse(rt, fd, text, length, end, &answer, limit);
        }
    }
    if (fd >= 0)
        close(fd);
    if (!error && !utf8_valid((const unsigned char *)answer.data, answer.size))
        error = EILSEQ;
    if (!error)
        result = JS_NewStringLen(ctx, answer.data, answer.size);
    js_free_rt(rt, answer.data);
    JS_FreeCString(ctx, text);
    return target_done(ctx, &t, error, call, result);
}

// Starts `path` with its output in a pipe, of which `out` is our end. 0, or an errno.
static int start_child(const char *path, char *const *list, char *const *env, pid_t *child, int *out)
{
    int ends[2], null, pipe_in;
    pid_t parent = getpid();
    volatile int exec_error = 0; // written by the child, in our memory

    null = above_standard(open("/dev/null", O_RDWR | O_CLOEXEC));
    if (null < 0)
        return errno;
    if (pipe2(ends, O_CLOEXEC) < 0) {
        exec_error = errno;
        close(null);
        return exec_error;
    }
    *out = above_standard(ends[0]);
    pipe_in = above_standard(ends[1]);
    if (*out < 0 || pipe_in < 0 || fcntl(*out, F_SETFL, O_NONBLOCK) < 0) {
        exec_error = errno;
    } else {
        *child = vfork();
        if (*child == 0) {
            if (setpgid(0, 0) < 0 || prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != parent ||
                dup2(null, STDIN_FILENO) < 0 || dup2(pipe_in, STDOUT_FILENO) < 0 || dup2(null, STDERR_FILENO) < 0) {
                exec_error = errno ? errno : ECHILD;
                _exit(127);
            }
            execve(path, list, env);
            exec_error = errno;
            _exit(127);
        }
        if (*child < 0)
            exec_error = errno;
        else if (exec_error)
            waitpid(*child, NULL, 0);
    }
    close(null);
    if (pipe_in >= 0)
        close(pipe_in);
    if (exec_error && *out >= 0)
        close(*out);
    return exec_error;
}

// capture(path, args, env, limit, timeoutMs): {code, out}
static JSValue sys_capture(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv)
{
    struct target t = {NULL, NULL};
    struct sigaction by_default = {.sa_handler = SIG_DFL}, child_action;
    JSRuntime *rt = JS_GetRuntime(ctx);
    struct buffer text = {NULL, 0, 0};
    int64_t limit, timeout;
    const char **list = NULL, **env = NULL, *call = "execve";
    pid_t child;
    int out, status = 0, error;
    JSValue result = JS_UNDEFINED;

    (void)this_val;
    (void)argc;
    if (JS_ToInt64(ctx, &limit, argv[3]) || JS_ToInt64(ctx, &timeout, argv[4]) || !(t.path = sluice_text_arg(ctx, argv[0])))
        return JS_EXCEPTION;
    if (!(list = string_list(ctx, t.path, argv[1])) || !(env = string_list(ctx, NULL, argv[2]))) {
        string_list_free(ctx, list, 1);
        target_free(ctx, &t);
        return JS_EXCEPTION;
    }
    // An inherited "ignore" for SIGCHLD would let the kernel reap the child and lose its exit code.
    if (sigaction(SIGCHLD, &by_default, &child_action) < 0) {
        error = errno;
        call = "sigaction";
    } else {
        error = start_child(t.path, (char *const *)list, (char *const *)env, &child, &out);
        if (!error) {
            call = "read";
            error = read_child(rt, child, out, limit, timeout, &text, &status);
            close(out);
        }
        sigaction(SIGCHLD, &child_action, NULL);
    }
    if (!error) {
        static const char *names[] = {"code", "out"};
        JSValue values[] = {
            JS_NewInt32(ctx, WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status)),
            JS_NewStringLen(ctx, text.data, text.size), // what is not UTF-8 becomes U+FFFD
        };

        result = JS_IsException(values[1]) ? JS_EXCEPTION : JS_NewObjectFromStr(ctx, countof(names), names, values);
    }
    js_free_rt(rt, text.data);
    string_list_free(ctx, env, 0);
    string_list_free(ctx, list, 1);
    return target_done(ctx, &t, error, call, result);
}

static const JSCFunctionListEntry functions[] = {
    JS_CFUNC_DEF("jsonEnd", 2, sluice_json_end),
    JS_CFUNC_DEF("jsonParts", 2, sluice_json_parts),
    JS_CFUNC_DEF("addCached", 3, sluice_add_cached),
    JS_CFUNC_DEF("sha256", 1, sluice_sha256),
    JS_CFUNC_DEF("readText", 3, sys_read_text),
    JS_CFUNC_DEF("readBytes", 4, sys_read_bytes),
    JS_CFUNC_DEF("stat", 3, sys_stat),
    JS_CFUNC_DEF("stamps", 3, sys_stamps),
    JS_CFUNC_DEF("list", 2, sys_list),
    JS_CFUNC_DEF("readLink", 2, sys_read_link),
    JS_CFUNC_DEF("realPath", 1, sys_real_path),
    JS_CFUNC_DEF("writeFile", 4, sys_write_file),
    JS_CFUNC_MAGIC_DEF("chmod", 2, sys_path_call, CALL_CHMOD),
    JS_CFUNC_MAGIC_DEF("chown", 3, sys_path_call, CALL_CHOWN),
    JS_CFUNC_MAGIC_DEF("unlink", 1, sys_path_call, CALL_UNLINK),
    JS_CFUNC_MAGIC_DEF("mkdir", 2, sys_path_call, CALL_MKDIR),
    JS_CFUNC_DEF("rename", 2, sys_rename),
    JS_CFUNC_DEF("treeSymlink", 3, sys_tree_symlink),
    JS_CFUNC_DEF("treeLinks", 4, sys_tree_links),
    JS_CFUNC_DEF("treeWrite", 4, sys_tree_write),
    JS_CFUNC_DEF("treeMkdir", 3, sys_tree_mkdir),
    JS_CFUNC_DEF("treeBind", 3, sys_tree_bind),
    JS_CFUNC_DEF("treeMounted", 2, sys_tree_mounted),
    JS_CFUNC_DEF("treeWritable", 1, sys_tree_writable),
    JS_CFUNC_DEF("lock", 1, sys_lock),
    JS_CFUNC_DEF("unlock", 1, sys_unlock),
    JS_CFUNC_DEF("readInput", 1, sys_read_input),
    JS_CFUNC_DEF("print", 2, sys_print),
    JS_CFUNC_DEF("getenv", 1, sys_getenv),
    JS_CFUNC_DEF("cwd", 0, sys_cwd),
    JS_CFUNC_DEF("now", 0, sys_now),
    JS_CFUNC_DEF("sleep", 1, sys_sleep),
    JS_CFUNC_DEF("ask", 4, sys_ask),
    JS_CFUNC_DEF("capture", 5, sys_capture),
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
