/* Faults at calls of the operating system, for tests/test_faults.py.
 *
 * Loaded by LD_PRELOAD, it counts the calls a process makes on files below some folders and lets one of them
 * fail, do less than it was asked, or be the last thing the process does. Nothing happens until fault_arm is
 * called, and children start with it disarmed.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { FAIL, SHORT, STOP_BEFORE, STOP_AFTER };

static char folders[4][PATH_MAX];
static int folder_count, action, error_number, armed, log_handle = -1;
static long wanted;
static atomic_long seen;

/* At call number `number` (from 1; 0: none) below one of `count` folders, do `what`. Every call is written to
 * `log`, a descriptor, as its number, name and path. */
void fault_arm(const char **places, int count, long number, int what, int error, int log)
{
    folder_count = count;
    for (int i = 0; i < count && i < 4; i++) snprintf(folders[i], PATH_MAX, "%s", places[i]);
    wanted = number, action = what, error_number = error, log_handle = log;
    atomic_store(&seen, 0);
    armed = 1;
}

static int below(const char *path)
{
    for (int i = 0; i < folder_count; i++) {
        size_t length = strlen(folders[i]);
        if (!strncmp(path, folders[i], length) && (path[length] == '/' || !path[length])) return 1;
    }
    return 0;
}

/* Whether the call is the one; it is logged and counted if it is below a folder. */
static int strikes(const char *name, const char *path)
{
    if (!armed || !path || !below(path)) return 0;
    int saved = errno;
    long number = atomic_fetch_add(&seen, 1) + 1;
    if (log_handle >= 0) dprintf(log_handle, "%ld %s %s\n", number, name, path);
    errno = saved;
    return number == wanted;
}

/* A path as the process names it, made absolute. */
static const char *absolute(int folder, const char *path, char *space)
{
    char from[64];
    ssize_t length;
    if (!armed || !path || path[0] == '/') return path;
    snprintf(from, sizeof from, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
    length = readlink(from, space, PATH_MAX - 2);
    if (length < 0) return NULL;
    snprintf(space + length, PATH_MAX - length, "/%s", path);
    return space;
}

static const char *opened(int handle, char *space)
{
    char from[64];
    ssize_t length;
    if (!armed) return NULL;
    snprintf(from, sizeof from, "/proc/self/fd/%d", handle);
    length = readlink(from, space, PATH_MAX - 1);
    if (length < 0) return NULL;
    space[length] = 0;
    return space;
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

/* `call` is made unless the fault comes first; SHORT does the same as FAIL where there is no length. */
#define FAULTY(type, name, path, call) \
    do { \
        if (!strikes(name, path)) return call; \
        if (action == STOP_BEFORE) _exit(137); \
        if (action == STOP_AFTER) { (void)!(call); _exit(137); } \
        errno = error_number; \
        return (type)-1; \
    } while (0)

/* The same for calls of a length: SHORT halves it. */
#define FAULTY_IO(name, handle, length, whole, part) \
    do { \
        char space[PATH_MAX]; \
        if (!strikes(name, opened(handle, space))) return whole; \
        if (action == STOP_BEFORE) { (void)!(part); _exit(137); } \
        if (action == STOP_AFTER) { (void)!(whole); _exit(137); } \
        if (action == SHORT && (length) > 1) return part; \
        errno = error_number; \
        return -1; \
    } while (0)

/* The mode that comes after `flags` where a file may be made. O_TMPFILE holds the bit of O_DIRECTORY. */
#define MODE \
    va_list more; \
    va_start(more, flags); \
    mode_t mode = flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(more, mode_t) : 0; \
    va_end(more)

#define OPEN(function) \
    int function(const char *path, int flags, ...) \
    { \
        char space[PATH_MAX]; \
        MODE; \
        REAL(int, #function, const char *, int, ...); \
        FAULTY(int, "open", absolute(AT_FDCWD, path, space), real(path, flags, mode)); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(function) \
    int function(int folder, const char *path, int flags, ...) \
    { \
        char space[PATH_MAX]; \
        MODE; \
        REAL(int, #function, int, const char *, int, ...); \
        FAULTY(int, "open", absolute(folder, path, space), real(folder, path, flags, mode)); \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t read(int handle, void *data, size_t length)
{
    REAL(ssize_t, "read", int, void *, size_t);
    FAULTY_IO("read", handle, length, real(handle, data, length), real(handle, data, length / 2));
}

ssize_t write(int handle, const void *data, size_t length)
{
    REAL(ssize_t, "write", int, const void *, size_t);
    FAULTY_IO("write", handle, length, real(handle, data, length), real(handle, data, length / 2));
}

#define AT_PLACE(function, name, qualifier, offset) \
    ssize_t function(int handle, qualifier void *data, size_t length, offset at) \
    { \
        REAL(ssize_t, #function, int, qualifier void *, size_t, offset); \
        FAULTY_IO(name, handle, length, real(handle, data, length, at), real(handle, data, length / 2, at)); \
    }
AT_PLACE(pread, "read", , off_t)
AT_PLACE(pread64, "read", , off64_t)
AT_PLACE(pwrite, "write", const, off_t)
AT_PLACE(pwrite64, "write", const, off64_t)

#define VECTOR(function, name, offset) \
    ssize_t function(int handle, const struct iovec *data, int count, offset at) \
    { \
        REAL(ssize_t, #function, int, const struct iovec *, int, offset); \
        struct iovec half = {data[0].iov_base, data[0].iov_len / 2}; \
        FAULTY_IO(name, handle, data[0].iov_len, real(handle, data, count, at), real(handle, &half, 1, at)); \
    }
VECTOR(preadv, "read", off_t)
VECTOR(preadv64, "read", off64_t)
VECTOR(pwritev, "write", off_t)
VECTOR(pwritev64, "write", off64_t)

#define VECTOR_2(function, name, offset) \
    ssize_t function(int handle, const struct iovec *data, int count, offset at, int flags) \
    { \
        REAL(ssize_t, #function, int, const struct iovec *, int, offset, int); \
        struct iovec half = {data[0].iov_base, data[0].iov_len / 2}; \
        FAULTY_IO(name, handle, data[0].iov_len, real(handle, data, count, at, flags), \
                  real(handle, &half, 1, at, flags)); \
    }
VECTOR_2(preadv2, "read", off_t)
VECTOR_2(preadv64v2, "read", off64_t)
VECTOR_2(pwritev2, "write", off_t)
VECTOR_2(pwritev64v2, "write", off64_t)

#define OF_HANDLE(function, name, parameters, arguments, ...) \
    int function parameters \
    { \
        char space[PATH_MAX]; \
        REAL(int, #function, __VA_ARGS__); \
        FAULTY(int, name, opened(handle, space), real arguments); \
    }
OF_HANDLE(fsync, "fsync", (int handle), (handle), int)
OF_HANDLE(fdatasync, "fsync", (int handle), (handle), int)
OF_HANDLE(ftruncate, "truncate", (int handle, off_t length), (handle, length), int, off_t)
OF_HANDLE(ftruncate64, "truncate", (int handle, off64_t length), (handle, length), int, off64_t)

#define OF_PATH(function, name, named, parameters, arguments, ...) \
    int function parameters \
    { \
        char space[PATH_MAX]; \
        REAL(int, #function, __VA_ARGS__); \
        FAULTY(int, name, named, real arguments); \
    }
#define HERE absolute(AT_FDCWD, path, space)
#define THERE absolute(folder, path, space)
OF_PATH(unlink, "unlink", HERE, (const char *path), (path), const char *)
OF_PATH(rmdir, "rmdir", HERE, (const char *path), (path), const char *)
OF_PATH(mkdir, "mkdir", HERE, (const char *path, mode_t mode), (path, mode), const char *, mode_t)
OF_PATH(chmod, "chmod", HERE, (const char *path, mode_t mode), (path, mode), const char *, mode_t)
OF_PATH(link, "link", HERE, (const char *from, const char *path), (from, path), const char *, const char *)
OF_PATH(rename, "rename", HERE, (const char *from, const char *path), (from, path), const char *, const char *)
OF_PATH(unlinkat, "unlink", THERE, (int folder, const char *path, int flags), (folder, path, flags), int, const char *, int)
OF_PATH(mkdirat, "mkdir", THERE, (int folder, const char *path, mode_t mode), (folder, path, mode), int, const char *, mode_t)
OF_PATH(linkat, "link", THERE, (int there, const char *from, int folder, const char *path, int flags), (there, from, folder, path, flags), int, const char *, int, const char *, int)
OF_PATH(renameat, "rename", THERE, (int there, const char *from, int folder, const char *path), (there, from, folder, path), int, const char *, int, const char *)
