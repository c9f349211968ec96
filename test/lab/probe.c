/*
 * What tests run inside containers that have nothing else.
 *
 *   probe open PATH...   opens each path and says how that went: "PATH: opened" or "PATH: EPERM"
 *   probe mknod PATH MAJOR MINOR    makes a character device and opens it, in the same words
 *   probe env            its environment
 *   probe wait           waits for SIGTERM or SIGINT and reaps what becomes its child (a pod's pause process)
 *
 * Opening is all: a read could block or have an effect. Ends with 0 if all could be opened, with 1 if not.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static const char *name_of(int error) {
    switch (error) {
    case EACCES: return "EACCES";
    case EIO: return "EIO";
    case ELOOP: return "ELOOP";
    case ENODEV: return "ENODEV";
    case ENOENT: return "ENOENT";
    case ENXIO: return "ENXIO";
    case EPERM: return "EPERM";
    default: return strerror(error);
    }
}

static int try_open(const char *path) {
    int fd = open(path, O_RDWR | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0 && (errno == EROFS || errno == EISDIR || errno == ETXTBSY)) fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    printf("%s: %s\n", path, fd < 0 ? name_of(errno) : "opened");
    if (fd >= 0) close(fd);
    return fd >= 0 ? 0 : 1;
}

static int wait_for_signal(void) {
    sigset_t signals;
    int signal_number;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGCHLD);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    while (sigwait(&signals, &signal_number) == 0) {
        if (signal_number != SIGCHLD) return 0;
        while (waitpid(-1, NULL, WNOHANG) > 0) {}
    }
    return 1;
}

int main(int argc, char **argv) {
    const char *command = argc > 1 ? argv[1] : "";
    int failed = 0;
    if (strcmp(command, "open") == 0) {
        for (int i = 2; i < argc; i++) failed |= try_open(argv[i]);
        return failed;
    }
    if (strcmp(command, "mknod") == 0 && argc == 5) {
        dev_t device = makedev((unsigned)atoi(argv[3]), (unsigned)atoi(argv[4]));
        if (mknod(argv[2], S_IFCHR | 0666, device) != 0) {
            printf("%s: mknod: %s\n", argv[2], name_of(errno));
            return 1;
        }
        return try_open(argv[2]);
    }
    if (strcmp(command, "env") == 0) {
        for (char **variable = environ; *variable != NULL; variable++) puts(*variable);
        return 0;
    }
    if (strcmp(command, "wait") == 0) return wait_for_signal();
    fprintf(stderr, "usage: probe open PATH... | mknod PATH MAJOR MINOR | env | wait\n");
    return 2;
}
