// SPDX-License-Identifier: Apache-2.0
//
// Starts programs and measures them. A Node process is the wrong place for that: its own start of a child takes longer
// than what is measured, and a child's peak memory begins with that of its parent.
//
//   timer SCRIPT OUTPUT LOG
//
// SCRIPT has one command a line, its words parted by tabs: first
//
//   rounds N               how often all cases run, each round beginning with another one
//   case NAME              begins a case
//
// and in a case, to be run in order:
//
//   set NAME=VALUE         environment, from here on
//   copy FROM TO           a small file, for what the last run changed
//   remove PATH            a file, whether it is there or not
//   empty DIR              removes the files of a folder that may be there
//   sleep MILLISECONDS
//   do PROGRAM ARG...      runs a program that is not measured
//   time STEP PROGRAM ARG...
//   reap                   waits for the children that those programs have left (a container's process)
//
// For each `time` OUTPUT gets `ROUND CASE STEP NANOSECONDS CPU_NANOSECONDS PEAK_KIB`, parted by tabs. Every program
// must succeed; what they print goes to LOG.

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_LINES 1024
#define MAX_CASES 64
#define MAX_WORDS 32

static char *lines[MAX_LINES][MAX_WORDS + 1];
static FILE *output;

static void die(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    fputs("timer: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

static void check(int failed, const char *what, const char *path)
{
    if (failed)
        die("%s %s: %s", what, path, strerror(errno));
}

static size_t read_script(const char *path)
{
    FILE *file = fopen(path, "re");
    char *line = NULL;
    size_t count = 0, size = 0;

    check(!file, "open", path);
    while (getline(&line, &size, file) > 0) {
        size_t words = 0;

        line[strcspn(line, "\n")] = '\0';
        if (count == MAX_LINES)
            die("%s has more than %d lines", path, MAX_LINES);
        for (char *word = strtok(line, "\t"); word; word = strtok(NULL, "\t")) {
            if (words == MAX_WORDS)
                die("%s: a line has more than %d words", path, MAX_WORDS);
            lines[count][words++] = word;
        }
        if (words)
            count++;
        // The words stay in the line's memory.
        line = NULL;
        size = 0;
    }
    check(ferror(file), "read", path);
    fclose(file);
    return count;
}

static void copy(const char *from, const char *to)
{
    static char buffer[1 << 20];
    int in = open(from, O_RDONLY | O_CLOEXEC);
    int out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    ssize_t size;

    check(in < 0, "open", from);
    check(out < 0, "create", to);
    size = read(in, buffer, sizeof buffer);
    check(size < 0, "read", from);
    if (size == sizeof buffer)
        die("%s is too large to copy", from);
    check(write(out, buffer, (size_t)size) != size, "write", to);
    close(in);
    check(close(out), "close", to);
}

static void empty(const char *path)
{
    DIR *dir = opendir(path);

    if (!dir && errno == ENOENT)
        return;
    check(!dir, "open", path);
    for (struct dirent *entry = readdir(dir); entry; entry = readdir(dir))
        if (entry->d_type == DT_REG)
            check(unlinkat(dirfd(dir), entry->d_name, 0), "unlink", entry->d_name);
    closedir(dir);
}

static double now(void)
{
    struct timespec t;

    check(clock_gettime(CLOCK_MONOTONIC, &t), "read", "the clock");
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static double nanoseconds(struct timeval t)
{
    return (double)t.tv_sec * 1e9 + (double)t.tv_usec * 1e3;
}

// Gives the nanoseconds from before the start of a program to after its end.
static double run(char **words, struct rusage *usage)
{
    double start = now();
    pid_t child;
    int status;

    errno = posix_spawnp(&child, words[0], NULL, NULL, words, environ);
    check(errno, "start", words[0]);
    check(wait4(child, &status, 0, usage) != child, "wait for", words[0]);
    start = now() - start;
    if (status)
        die("%s %s: %s %d", words[0], words[1] ? words[1] : "", WIFEXITED(status) ? "exit code" : "signal",
            WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
    return start;
}

static void step(unsigned round, const char *name, char **words)
{
    const char *verb = words[0], *argument = words[1] ? words[1] : "";
    struct rusage usage;

    if (!strcmp(verb, "set")) {
        check(putenv(words[1]), "set", argument);
    } else if (!strcmp(verb, "copy") && words[1] && words[2]) {
        copy(argument, words[2]);
    } else if (!strcmp(verb, "remove")) {
        check(unlink(argument) && errno != ENOENT && errno != ENOTDIR, "remove", argument);
    } else if (!strcmp(verb, "empty")) {
        empty(argument);
    } else if (!strcmp(verb, "sleep")) {
        check(usleep((useconds_t)atoi(argument) * 1000), "sleep", argument);
    } else if (!strcmp(verb, "do") && words[1]) {
        run(words + 1, &usage);
    } else if (!strcmp(verb, "time") && words[1] && words[2]) {
        double took = run(words + 2, &usage);

        fprintf(output, "%u\t%s\t%s\t%.0f\t%.0f\t%ld\n", round, name, argument, took,
                nanoseconds(usage.ru_utime) + nanoseconds(usage.ru_stime), usage.ru_maxrss);
    } else if (!strcmp(verb, "reap")) {
        while (wait(NULL) > 0)
            ;
        check(errno != ECHILD, "wait for", "children");
    } else {
        die("no command is called %s, or it needs more words", verb);
    }
}

int main(int argc, char **argv)
{
    size_t starts[MAX_CASES + 1], cases = 0, count;
    unsigned rounds = 1;
    int log, nothing;

    if (argc != 4)
        die("usage: timer SCRIPT OUTPUT LOG");
    count = read_script(argv[1]);
    for (size_t i = 0; i < count; i++) {
        if (!strcmp(lines[i][0], "rounds") && lines[i][1])
            rounds = (unsigned)atoi(lines[i][1]);
        if (strcmp(lines[i][0], "case"))
            continue;
        if (cases == MAX_CASES || !lines[i][1])
            die("case %zu: more than %d, or without a name", cases + 1, MAX_CASES);
        starts[cases++] = i;
    }
    starts[cases] = count;

    output = fopen(argv[2], "we");
    check(!output, "create", argv[2]);
    // Not a pipe: a container keeps it open, and whoever read it would wait for the container.
    log = open(argv[3], O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    check(log < 0 || dup2(log, 1) < 0 || dup2(log, 2) < 0, "open", argv[3]);
    nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
    check(nothing < 0 || dup2(nothing, 0) < 0, "open", "/dev/null");
    // A container's process outlives the runtime that made it, and is then ours.
    check(prctl(PR_SET_CHILD_SUBREAPER, 1) != 0, "become", "subreaper");

    for (unsigned round = 0; round < rounds && cases > 0; round++) {
        for (size_t n = 0; n < cases; n++) {
            size_t c = (n + round) % cases;

            for (size_t i = starts[c] + 1; i < starts[c + 1]; i++)
                step(round, lines[starts[c]][1], lines[i]);
        }
    }
    check(fclose(output), "write", argv[2]);
    return 0;
}
