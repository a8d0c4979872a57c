/* A wall clock that steps: LD_PRELOAD for the engine, used by tests/it/faults/clock.rs.
 *
 * The file CLOCK_OFFSET holds seconds, a native 64-bit number, that are added to CLOCK_REALTIME. It is mapped, so that a write
 * to it steps the clock of running processes at once. Monotonic clocks go on, as they do when a real clock is set.
 *
 * Not for the engine's ClickHouse child, which inherits the variable: libchdb reads most of its times without libc. Its clock
 * stays, as that of another machine does.
 *
 * Deadlines on the wall clock (cnd_timedwait and the like) come when this clock says so, also where a wait began before the
 * step, as with a real one. Not modelled: times of files, which the kernel sets; raw system calls.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *offset;

__attribute__((constructor)) static void begin(void) {
    char words[4096];
    int line = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t length = read(line, words, sizeof words);
    close(line);
    if (length < 0 || memmem(words, (size_t)length, "\0clickhouse", sizeof "\0clickhouse")) return;
    const char *path = getenv("CLOCK_OFFSET");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) abort();
    void *mapped = mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (mapped == MAP_FAILED) abort();
    offset = mapped;
}

static int64_t step(void) { return offset ? *offset : 0; }

static int is_wall(clockid_t clock) { return clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE; }

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = (int)syscall(SYS_clock_gettime, clock, time);
    if (result == 0 && is_wall(clock)) time->tv_sec += step();
    return result;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    int result = (int)syscall(SYS_gettimeofday, time, zone);
    if (result == 0) time->tv_sec += step();
    return result;
}

time_t time(time_t *to) {
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now) != 0) return -1;
    if (to) *to = now.tv_sec;
    return now.tv_sec;
}

int timespec_get(struct timespec *time, int base) {
    if (base != TIME_UTC || clock_gettime(CLOCK_REALTIME, time) != 0) return 0;
    return base;
}

/* The deadline as the kernel's clock has it. Monotonic ones, which are some days at most, stay as they are. */
static struct timespec turned_back(const struct timespec *deadline) {
    struct timespec real = *deadline;
    if (real.tv_sec > 1000000000) real.tv_sec -= step();
    return real;
}

#define NEXT(name, version)                                                 \
    static __typeof__(&name) next;                                          \
    if (!next) {                                                            \
        next = (__typeof__(&name))dlvsym(RTLD_NEXT, #name, version);        \
        if (!next) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name);       \
        if (!next) abort();                                                 \
    }

/* What is still waiting for a deadline on the wall clock when that is set waits on, for as long as the new time says. */
static int has_come(const struct timespec *deadline) {
    struct timespec now;
    clock_gettime(deadline->tv_sec > 1000000000 ? CLOCK_REALTIME : CLOCK_MONOTONIC, &now);
    return now.tv_sec > deadline->tv_sec || (now.tv_sec == deadline->tv_sec && now.tv_nsec >= deadline->tv_nsec);
}

static struct timespec slice_of(const struct timespec *deadline) {
    struct timespec real = turned_back(deadline), soon;
    syscall(SYS_clock_gettime, deadline->tv_sec > 1000000000 ? CLOCK_REALTIME : CLOCK_MONOTONIC, &soon);
    soon.tv_sec += 1;
    return soon.tv_sec < real.tv_sec ? soon : real;
}

int pthread_cond_timedwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict deadline) {
    NEXT(pthread_cond_timedwait, "GLIBC_2.3.2")
    int result;
    do {
        struct timespec slice = slice_of(deadline);
        result = next(cond, mutex, &slice);
    } while (result == ETIMEDOUT && !has_come(deadline));
    return result;
}

int pthread_cond_clockwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex, clockid_t clock,
                           const struct timespec *restrict deadline) {
    NEXT(pthread_cond_clockwait, "GLIBC_2.30")
    int result;
    do {
        struct timespec slice = slice_of(deadline);
        result = next(cond, mutex, clock, &slice);
    } while (result == ETIMEDOUT && !has_come(deadline));
    return result;
}

/* librdkafka's: libc's own goes past the names above. */
int cnd_timedwait(cnd_t *restrict cond, mtx_t *restrict mutex, const struct timespec *restrict deadline) {
    NEXT(cnd_timedwait, "GLIBC_2.28")
    int result;
    do {
        struct timespec slice = slice_of(deadline);
        result = next(cond, mutex, &slice);
    } while (result == thrd_timedout && !has_come(deadline));
    return result;
}

int pthread_mutex_timedlock(pthread_mutex_t *restrict mutex, const struct timespec *restrict deadline) {
    NEXT(pthread_mutex_timedlock, "GLIBC_2.2.5")
    struct timespec real = turned_back(deadline);
    return next(mutex, &real);
}

int sem_timedwait(sem_t *restrict sem, const struct timespec *restrict deadline) {
    NEXT(sem_timedwait, "GLIBC_2.2.5")
    struct timespec real = turned_back(deadline);
    return next(sem, &real);
}

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *wait, struct timespec *left) {
    struct timespec real = flags & TIMER_ABSTIME ? turned_back(wait) : *wait;
    return syscall(SYS_clock_nanosleep, clock, flags, &real, left) == 0 ? 0 : errno;
}
