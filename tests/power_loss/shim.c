/* A disk whose power may fail: LD_PRELOAD for the engine and its ClickHouse child, used by tests/it/power_loss.rs.
 *
 * It keeps, beside the folder POWER_LOSS_TREE, an image (POWER_LOSS_IMAGE) of what a power loss would leave of it. Only
 * these calls change the image, each before it returns:
 *   fsync, fdatasync of a file     the file's content and size, as they are now;
 *   fsync, fdatasync of a folder   the folder's entries (creates, renames, removals), as they are now;
 *   write to a file with the attribute S (chattr +S): as fsync of it;
 *   syncfs, sync                   both, of every file and folder in the tree.
 *
 * Why it is honest: nothing is recorded at a write, so it does not matter how a byte came into a file (write, pwritev,
 * mmap, copy_file_range, a raw system call); a sync reads it from there. A sync that the shim does not see (a raw system
 * call, io_uring) makes nothing durable, so it can only make a test fail that should pass. sync_file_range, close and
 * exit make nothing durable. A name is not durable because its file is; a file is not durable because its name is.
 * A process killed inside a sync leaves the image with some of the pages of that sync: as a disk does.
 *
 * What is durable by other means is not modelled but reported, by a line in IMAGE/unmodelled, which fails the test:
 * O_SYNC and O_DSYNC, msync(MS_SYNC).
 *
 * Not modelled: disks that lose what they confirmed or reorder inside a sector, a sector that is half written (blocks of
 * 4 KiB are whole), permissions, times, extended attributes. No file system promises so little as this image: ext4 and
 * XFS make older renames durable with any later fsync.
 *
 * A file is known by its inode and its time of birth, because numbers of inodes are used again; within one tick of the
 * clock too, so a file that was synced once is held by a further link.
 *
 * Image:  files/<inode>    durable content; a file without one is durably empty
 *         folders/<inode>  durable entries: kind F, D or L, NUL, inode or target, NUL, name, NUL
 *         held/<inode>     the files themselves
 *         loaded/<pid>     which processes have the shim
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define PIECE (256 * 1024)
#define BLOCK 4096

static const char *tree, *image;
static size_t tree_length;

static void fail(const char *what, const char *path) {
    dprintf(2, "power-loss shim: %s %s: %s\n", what, path, strerror(errno));
    abort();
}

/* Not through our own open. */
static int open_raw(const char *path, int flags) { return (int)syscall(SYS_openat, AT_FDCWD, path, flags | O_CLOEXEC, 0644); }

static void note(const char *file, const char *text) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", image, file);
    int fd = open_raw(path, O_WRONLY | O_CREAT | O_APPEND);
    if (fd < 0 || write(fd, text, strlen(text)) < 0) fail("write", path);
    close(fd);
}

__attribute__((constructor)) static void begin(void) {
    tree = getenv("POWER_LOSS_TREE");
    image = getenv("POWER_LOSS_IMAGE");
    if (!tree || !image) {
        tree = NULL;
        return;
    }
    tree_length = strlen(tree);
    char name[64];
    snprintf(name, sizeof name, "loaded/%d", getpid());
    note(name, "");
}

static int below(const char *path) {
    return strncmp(path, tree, tree_length) == 0 && (path[tree_length] == '/' || path[tree_length] == 0);
}

/* Whether `fd` is in the tree; its path through /proc, under which even a removed file opens. */
static int tracked(int fd, char proc[64]) {
    if (!tree) return 0;
    char path[PATH_MAX];
    snprintf(proc, 64, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(proc, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return below(path);
}

static int look(int at, const char *name, int flags, struct statx *found, char key[96]) {
    if (statx(at, name, flags, STATX_BASIC_STATS | STATX_BTIME, found) != 0) return -1;
    if (!(found->stx_mask & STATX_BTIME)) {
        errno = ENOTSUP;
        fail("no time of birth", name);
    }
    snprintf(key, 96, "%llu-%lld.%09u", (unsigned long long)found->stx_ino, (long long)found->stx_btime.tv_sec,
             found->stx_btime.tv_nsec);
    return 0;
}

/* Copies the blocks of a file that differ from its image. The lock is per open file: threads and processes alike. */
static void keep_file(int from, const char *key) {
    char path[PATH_MAX], held[PATH_MAX], proc[64];
    snprintf(path, sizeof path, "%s/files/%s", image, key);
    int to = open_raw(path, O_RDWR | O_CREAT);
    if (to < 0 || flock(to, LOCK_EX) != 0) fail("open", path);
    char *now = malloc(2 * PIECE), *then = now + PIECE;
    if (!now) fail("no memory for", path);
    snprintf(proc, sizeof proc, "/proc/self/fd/%d", from);
    snprintf(held, sizeof held, "%s/held/%s", image, key);
    /* A file without a name any more cannot be held, and its number may come again: then it has no name to be found by. */
    (void)!linkat(AT_FDCWD, proc, AT_FDCWD, held, AT_SYMLINK_FOLLOW);
    off_t at = 0;
    for (;;) {
        ssize_t have = pread(from, now, PIECE, at);
        if (have < 0) fail("read for", path);
        if (have == 0) break;
        ssize_t had = pread(to, then, (size_t)have, at);
        if (had < 0) fail("read", path);
        memset(then + had, 0, (size_t)(have - had));
        for (ssize_t block = 0; block < have; block += BLOCK) {
            size_t length = have - block < BLOCK ? (size_t)(have - block) : BLOCK;
            if (memcmp(now + block, then + block, length) != 0 && pwrite(to, now + block, length, at + block) != (ssize_t)length)
                fail("write", path);
        }
        at += have;
    }
    if (ftruncate(to, at) != 0) fail("truncate", path);
    free(now);
    close(to);
}

/* Writes down the entries of a folder; with `deep`, also makes durable what is below. */
static void keep_folder(int folder, const char *key, int deep) {
    char lock_path[PATH_MAX], path[PATH_MAX], temporary[PATH_MAX];
    snprintf(path, sizeof path, "%s/folders/%s", image, key);
    snprintf(lock_path, sizeof lock_path, "%s/folders/%s.lock", image, key);
    snprintf(temporary, sizeof temporary, "%s/folders/%s.new", image, key);
    int lock = open_raw(lock_path, O_RDWR | O_CREAT);
    if (lock < 0 || flock(lock, LOCK_EX) != 0) fail("lock", lock_path);
    DIR *entries = fdopendir(fcntl(folder, F_DUPFD_CLOEXEC, 0));
    FILE *out = fopen(temporary, "we");
    if (!entries || !out) fail("open", temporary);
    rewinddir(entries);
    struct dirent *entry;
    while ((entry = readdir(entries))) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        struct statx found;
        char its[96], target[PATH_MAX];
        /* Removed meanwhile: then it is not an entry of the folder any more. */
        if (look(folder, entry->d_name, AT_SYMLINK_NOFOLLOW, &found, its) != 0) continue;
        char kind = S_ISDIR(found.stx_mode) ? 'D' : S_ISREG(found.stx_mode) ? 'F' : S_ISLNK(found.stx_mode) ? 'L' : 0;
        if (!kind) continue;
        if (kind == 'L') {
            ssize_t length = readlinkat(folder, entry->d_name, target, sizeof target - 1);
            if (length < 0) continue;
            target[length] = 0;
        } else if (deep) {
            int fd = (int)syscall(SYS_openat, folder, entry->d_name, O_RDONLY | O_CLOEXEC);
            if (fd < 0) continue;
            if (kind == 'D') keep_folder(fd, its, 1);
            else keep_file(fd, its);
            close(fd);
        }
        fprintf(out, "%c%c%s%c%s%c", kind, 0, kind == 'L' ? target : its, 0, entry->d_name, 0);
    }
    closedir(entries);
    if (fclose(out) != 0 || rename(temporary, path) != 0) fail("write", path);
    close(lock);
}

static void keep(const char *path, int deep) {
    struct statx found;
    char key[96];
    int fd = open_raw(path, O_RDONLY);
    if (fd < 0 || look(fd, "", AT_EMPTY_PATH, &found, key) != 0) fail("open", path);
    if (S_ISDIR(found.stx_mode)) keep_folder(fd, key, deep);
    else keep_file(fd, key);
    close(fd);
}

/* The real sync is left out: what the disk has does not matter here, and the copy has cost as much. */
static int sync_one(int fd, long call) {
    char proc[64];
    int before = errno;
    if (!tracked(fd, proc)) return (int)syscall(call, fd);
    keep(proc, 0);
    errno = before;
    return 0;
}

/* Nothing is recorded at a write, but for the files whose writes are synchronous. */
static ssize_t written(int fd, ssize_t result) {
    char proc[64];
    int before = errno, flags = 0;
    if (result > 0 && tracked(fd, proc) && ioctl(fd, FS_IOC_GETFLAGS, &flags) == 0 && (flags & FS_SYNC_FL)) keep(proc, 0);
    errno = before;
    return result;
}

ssize_t write(int fd, const void *bytes, size_t length) { return written(fd, syscall(SYS_write, fd, bytes, length)); }
ssize_t writev(int fd, const struct iovec *pieces, int count) { return written(fd, syscall(SYS_writev, fd, pieces, count)); }
ssize_t pwrite(int fd, const void *bytes, size_t length, off_t at) {
    return written(fd, syscall(SYS_pwrite64, fd, bytes, length, at));
}
ssize_t pwrite64(int fd, const void *bytes, size_t length, off_t at) { return pwrite(fd, bytes, length, at); }

int fsync(int fd) { return sync_one(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_one(fd, SYS_fdatasync); }

int syncfs(int fd) {
    char proc[64];
    if (!tracked(fd, proc)) return (int)syscall(SYS_syncfs, fd);
    int before = errno;
    keep(tree, 1);
    errno = before;
    return 0;
}

void sync(void) {
    int before = errno;
    if (tree) keep(tree, 1);
    errno = before;
}

int msync(void *start, size_t length, int flags) {
    if (tree && (flags & MS_SYNC)) note("unmodelled", "msync(MS_SYNC)\n");
    return (int)syscall(SYS_msync, start, length, flags);
}

/* Opens are looked at for O_SYNC only. */
static int opened(int fd, int flags) {
    char proc[64];
    int before = errno;
    if (fd >= 0 && (flags & O_DSYNC) && tracked(fd, proc)) note("unmodelled", "O_SYNC or O_DSYNC\n");
    errno = before;
    return fd;
}

#define OPEN(folder, path)                                                                                                     \
    mode_t mode = 0;                                                                                                           \
    if (flags & (O_CREAT | O_TMPFILE)) {                                                                                       \
        va_list more;                                                                                                          \
        va_start(more, flags);                                                                                                 \
        mode = va_arg(more, mode_t);                                                                                           \
        va_end(more);                                                                                                          \
    }                                                                                                                          \
    return opened((int)syscall(SYS_openat, folder, path, flags, mode), flags)

int open(const char *path, int flags, ...) { OPEN(AT_FDCWD, path); }
int open64(const char *path, int flags, ...) { OPEN(AT_FDCWD, path); }
int openat(int folder, const char *path, int flags, ...) { OPEN(folder, path); }
int openat64(int folder, const char *path, int flags, ...) { OPEN(folder, path); }
