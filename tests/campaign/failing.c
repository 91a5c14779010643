/* Calls that fail: preloaded into a process, it lets the n-th call of a kind on a spool's files fail with EIO. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

enum { WRITE, SYNC, UNLINK, RENAME, TRUNCATE, KINDS };

static int armed = -1;
static long seen, first, times;

void failing_arm(int kind, long at, long count) { armed = kind, first = at, times = count, seen = 0; }
long failing_seen(void) { return seen; }

static int fails(int kind, const char *path)
{
    if (kind != armed || !strstr(path, "/spool/spool.")) return 0;
    seen++;
    if (seen < first || seen >= first + times) return 0;
    errno = EIO;
    return 1;
}

static int fails_on(int kind, int descriptor)
{
    char link[64], path[4096];
    if (kind != armed) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return fails(kind, path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int d, const void *data, size_t size)
{ return fails_on(WRITE, d) ? -1 : REAL(write)(d, data, size); }
ssize_t pwrite(int d, const void *data, size_t size, off_t at)
{ return fails_on(WRITE, d) ? -1 : REAL(pwrite)(d, data, size, at); }
ssize_t pwrite64(int d, const void *data, size_t size, off64_t at)
{ return fails_on(WRITE, d) ? -1 : REAL(pwrite64)(d, data, size, at); }
int fsync(int d) { return fails_on(SYNC, d) ? -1 : REAL(fsync)(d); }
int fdatasync(int d) { return fails_on(SYNC, d) ? -1 : REAL(fdatasync)(d); }
int ftruncate(int d, off_t size) { return fails_on(TRUNCATE, d) ? -1 : REAL(ftruncate)(d, size); }
int ftruncate64(int d, off64_t size) { return fails_on(TRUNCATE, d) ? -1 : REAL(ftruncate64)(d, size); }
int unlink(const char *path) { return fails(UNLINK, path) ? -1 : REAL(unlink)(path); }
int rename(const char *from, const char *to) { return fails(RENAME, from) ? -1 : REAL(rename)(from, to); }
