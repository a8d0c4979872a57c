/* kill -9 at a named point of the write-ahead log, and what it was doing at any other kill: LD_PRELOAD for the engine, used by
 * tests/it/support/kill_points.rs. So the product has no code for tests in it.
 *
 * Looked at are the calls on the log's data files (KILL_POINTS_WAL/.../db), nothing else. KILL_POINTS_STATE is a file of
 * three numbers that this maps, so that they outlive the process:
 *   [0] the point at which the process kills itself, as the test has set it; 0 for none
 *   [1] threads that are in a write: records are being appended
 *   [2] threads that are in a sync: records are being flushed
 * A process that is killed leaves [1] and [2] as they were at that instant. The engine's ClickHouse child is left alone.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum point { NONE, APPEND_BEFORE, APPEND_HALF, FLUSH_BEFORE, FLUSH_AFTER };
enum { POINT, APPENDS, FLUSHES, LENGTH };

static volatile uint32_t *state;
static const char *wal;

__attribute__((constructor)) static void load(int argc, char **argv) {
    const char *path = getenv("KILL_POINTS_STATE");
    wal = getenv("KILL_POINTS_WAL");
    for (int argument = 0; argument < argc; argument++)
        if (strcmp(argv[argument], "serve") == 0 && path && wal) {
            int fd = open(path, O_RDWR | O_CLOEXEC);
            void *mapped = fd < 0 ? MAP_FAILED
                                  : mmap(NULL, LENGTH * sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
            if (mapped == MAP_FAILED) {
                dprintf(2, "kill points: %s: %s\n", path, strerror(errno));
                abort();
            }
            close(fd);
            state = mapped;
            state[APPENDS] = state[FLUSHES] = 0;
        }
}

static int is_data(int fd) {
    if (!state) return 0;
    char path[PATH_MAX], link[64];
    int before = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length < 3) return 0;
    path[length] = 0;
    return strncmp(path, wal, strlen(wal)) == 0 && strcmp(path + length - 3, "/db") == 0;
}

static void reach(enum point point) {
    if (state[POINT] != point) return;
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

static void count(int what, int by) { __atomic_fetch_add(&state[what], (uint32_t)by, __ATOMIC_SEQ_CST); }

ssize_t pwrite64(int fd, const void *bytes, size_t length, off_t at) {
    if (!is_data(fd)) return syscall(SYS_pwrite64, fd, bytes, length, at);
    count(APPENDS, 1);
    reach(APPEND_BEFORE);
    if (state[POINT] == APPEND_HALF) {
        syscall(SYS_pwrite64, fd, bytes, length / 2, at);
        reach(APPEND_HALF);
    }
    ssize_t result = syscall(SYS_pwrite64, fd, bytes, length, at);
    count(APPENDS, -1);
    return result;
}
ssize_t pwrite(int fd, const void *bytes, size_t length, off_t at) { return pwrite64(fd, bytes, length, at); }

int sync_file_range(int fd, off_t from, off_t length, unsigned flags) {
    int data = is_data(fd);
    if (data) count(FLUSHES, 1);
    int result = (int)syscall(SYS_sync_file_range, fd, from, length, flags);
    if (data) count(FLUSHES, -1);
    return result;
}

int fdatasync(int fd) {
    int data = is_data(fd);
    if (data) {
        count(FLUSHES, 1);
        reach(FLUSH_BEFORE);
    }
    int result = (int)syscall(SYS_fdatasync, fd);
    if (data) {
        reach(FLUSH_AFTER);
        count(FLUSHES, -1);
    }
    return result;
}
