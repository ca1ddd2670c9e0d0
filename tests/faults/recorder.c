/*
 * Preloaded into a process: writes down, in one order, what the process does to certain files and what it says to its
 * clients on Unix sockets; and lets writes and syncs of databases fail or last, as a test asks for.
 *
 *   RECORDER_PATHS    prefixes of paths, separated by colons: only files there are recorded
 *   RECORDER_LOG      the file that records are appended to, the same one for several processes; none: nothing is recorded
 *   RECORDER_CONTROL  a file that holds a struct control, which the test changes while the process runs
 *
 * Why the order can be trusted. A change of a file and its record are made under one lock, so no sync of the same process
 * comes between them. A sync has two records: it covers what was recorded before the first, and is worth something from the
 * second on, which is appended before the caller learns of it. What is said on a socket is recorded before it is said. Every
 * record is one append to a file that all processes share, so a record that could have been a reason for another one stands
 * before it: each beginning of the log is a state the whole could have been in when the power failed.
 */
#define _GNU_SOURCE
#undef _FORTIFY_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* As tests/faults/recording.py reads it. */
struct __attribute__((packed)) record {
    uint32_t size; /* of what follows */
    uint8_t kind;
    uint8_t unused[3];
    int32_t pid, tid, fd, result;
    int64_t first, second;
};

/* As tests/faults/control.py writes it. All zero: nothing fails. */
struct control {
    int32_t write_errno; /* with which writes to databases fail; ENOSPC: only those that would make a file longer */
    int32_t sync_errno;  /* with which syncs of databases fail */
    int32_t sync_passes; /* so many succeed before */
    int32_t sync_fails;  /* so many fail then; below 0: all */
    int32_t sync_delay;  /* milliseconds that every sync lasts longer */
    int32_t failed_writes, failed_syncs, delayed_syncs; /* counted here */
};

#define MAX_FD 4096

static struct {
    int watched, database;
    dev_t device;
    ino_t inode;
} files[MAX_FD];

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *paths;
static int log_fd = -1;
static struct control *control;

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("RECORDER_LOG");
    paths = getenv("RECORDER_PATHS");
    if (paths && path && *path) {
        int fd = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        log_fd = fcntl(fd, F_DUPFD_CLOEXEC, 900);
        syscall(SYS_close, fd);
        if (log_fd < 0) abort();
    }
    path = getenv("RECORDER_CONTROL");
    if (paths && path && *path) {
        int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
        void *place = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        syscall(SYS_close, fd);
        if (place == MAP_FAILED) abort();
        control = place;
    }
}

/* --- records ------------------------------------------------------------------------------------------------------ */

static void append(char kind, int fd, long result, int64_t first, int64_t second, const struct iovec *parts, int count)
{
    if (log_fd < 0) return;
    int saved = errno;
    struct record head = {0, (uint8_t)kind, {0}, getpid(), (int32_t)syscall(SYS_gettid), fd, (int32_t)result, first, second};
    if (count >= IOV_MAX) abort();
    struct iovec all[count + 1];
    for (int i = 0; i < count; i++) {
        all[i + 1] = parts[i];
        head.size += parts[i].iov_len;
    }
    all[0] = (struct iovec){&head, sizeof head};
    ssize_t whole = sizeof head + head.size;
    if (syscall(SYS_writev, log_fd, all, count + 1) != whole) abort(); /* a log with a hole would prove nothing */
    errno = saved;
}

static void note(char kind, int fd, long result, int64_t first, int64_t second, const void *data, size_t size)
{
    struct iovec part = {(void *)data, size};
    append(kind, fd, result, first, second, &part, data ? 1 : 0);
}

/* Something the process says about itself; called by name. */
void recorder_mark(const char *text, size_t size)
{
    note('K', -1, 0, 0, 0, text, size);
}

/* --- which files -------------------------------------------------------------------------------------------------- */

static const char *absolute(const char *path, char *room)
{
    if (*path == '/') return path;
    if (!getcwd(room, PATH_MAX)) return path;
    size_t length = strlen(room);
    snprintf(room + length, 2 * PATH_MAX - length, "/%s", path);
    return room;
}

static int watched_path(const char *path)
{
    if (!paths) return 0;
    for (const char *prefix = paths; *prefix;) {
        size_t length = strcspn(prefix, ":");
        if (length && !strncmp(path, prefix, length)) return 1;
        prefix += length + (prefix[length] == ':');
    }
    return 0;
}

static int watched(int fd)
{
    if (fd < 0 || fd >= MAX_FD || !files[fd].watched) return 0;
    struct stat now;
    if (fstat(fd, &now) || now.st_dev != files[fd].device || now.st_ino != files[fd].inode) abort(); /* a close was missed */
    return 1;
}

static int opened(int fd, const char *path, int flags, int existed)
{
    char room[2 * PATH_MAX];
    path = absolute(path, room);
    if (fd < 0 || !watched_path(path)) return fd;
    struct stat now;
    if (fd >= MAX_FD || fstat(fd, &now)) abort();
    files[fd].watched = 1;
    files[fd].database = strstr(path, ".sqlite3") != NULL;
    files[fd].device = now.st_dev;
    files[fd].inode = now.st_ino;
    note('O', fd, fd, flags, !existed, path, strlen(path));
    return fd;
}

#define OPEN(name, at, ...) \
    { \
        REAL(name); \
        mode_t mode = 0; \
        if (flags & (O_CREAT | __O_TMPFILE)) { \
            va_list rest; \
            va_start(rest, flags); \
            mode = va_arg(rest, mode_t); \
            va_end(rest); \
        } \
        struct stat before; \
        pthread_mutex_lock(&lock); \
        int existed = !(flags & O_CREAT) || !fstatat(at, path, &before, 0); \
        int fd = opened(real(__VA_ARGS__, flags, mode), path, flags, existed); \
        pthread_mutex_unlock(&lock); \
        return fd; \
    }

int open(const char *path, int flags, ...) OPEN(open, AT_FDCWD, path)
int open64(const char *path, int flags, ...) OPEN(open64, AT_FDCWD, path)
int openat(int at, const char *path, int flags, ...) OPEN(openat, at, at, path)
int openat64(int at, const char *path, int flags, ...) OPEN(openat64, at, at, path)
int __open_2(const char *path, int flags) { return open(path, flags); }
int __open64_2(const char *path, int flags) { return open64(path, flags); }

int close(int fd)
{
    REAL(close);
    pthread_mutex_lock(&lock);
    if (fd >= 0 && fd < MAX_FD && files[fd].watched) {
        files[fd].watched = 0;
        note('C', fd, 0, 0, 0, NULL, 0);
    }
    int result = real(fd);
    pthread_mutex_unlock(&lock);
    return result;
}

/* --- changes of files --------------------------------------------------------------------------------------------- */

/* Whether a change that leaves the file `end` bytes long is to fail; sets errno. */
static int refused(int fd, int64_t end)
{
    if (!control || !files[fd].database) return 0;
    int code = __atomic_load_n(&control->write_errno, __ATOMIC_SEQ_CST);
    struct stat now;
    if (!code || (code == ENOSPC && !fstat(fd, &now) && end <= now.st_size)) return 0;
    __atomic_add_fetch(&control->failed_writes, 1, __ATOMIC_SEQ_CST);
    errno = code;
    return 1;
}

static ssize_t written(int fd, ssize_t result, int64_t offset, const void *data)
{
    if (result > 0) note('W', fd, result, offset, 0, data, result);
    return result;
}

#define PWRITE(name, type) \
    ssize_t name(int fd, const void *data, size_t size, type offset) \
    { \
        REAL(name); \
        if (!watched(fd)) return real(fd, data, size, offset); \
        pthread_mutex_lock(&lock); \
        ssize_t result = refused(fd, offset + size) ? -1 : written(fd, real(fd, data, size, offset), offset, data); \
        pthread_mutex_unlock(&lock); \
        return result; \
    }

PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

static int truncated(int fd, int result, int64_t length)
{
    if (!result) note('T', fd, 0, length, 0, NULL, 0);
    return result;
}

#define FTRUNCATE(name, type) \
    int name(int fd, type length) \
    { \
        REAL(name); \
        if (!watched(fd)) return real(fd, length); \
        pthread_mutex_lock(&lock); \
        int result = refused(fd, length) ? -1 : truncated(fd, real(fd, length), length); \
        pthread_mutex_unlock(&lock); \
        return result; \
    }

FTRUNCATE(ftruncate, off_t)
FTRUNCATE(ftruncate64, off64_t)

static void wait_milliseconds(int milliseconds)
{
    struct timespec pause = {milliseconds / 1000, milliseconds % 1000 * 1000000L};
    nanosleep(&pause, NULL);
}

/* Whether a sync is to fail; lasts as long as it is to last. */
static int refused_sync(int fd)
{
    if (!control || !files[fd].database) return 0;
    int delay = __atomic_load_n(&control->sync_delay, __ATOMIC_SEQ_CST);
    if (delay) {
        wait_milliseconds(delay);
        __atomic_add_fetch(&control->delayed_syncs, 1, __ATOMIC_SEQ_CST);
    }
    int code = __atomic_load_n(&control->sync_errno, __ATOMIC_SEQ_CST);
    if (!code) return 0;
    if (__atomic_load_n(&control->sync_passes, __ATOMIC_SEQ_CST) > 0) {
        __atomic_sub_fetch(&control->sync_passes, 1, __ATOMIC_SEQ_CST);
        return 0;
    }
    int left = __atomic_load_n(&control->sync_fails, __ATOMIC_SEQ_CST);
    if (!left) return 0;
    if (left > 0) __atomic_sub_fetch(&control->sync_fails, 1, __ATOMIC_SEQ_CST);
    __atomic_add_fetch(&control->failed_syncs, 1, __ATOMIC_SEQ_CST);
    errno = code;
    return 1;
}

#define SYNC(name) \
    int name(int fd) \
    { \
        REAL(name); \
        if (!watched(fd)) return real(fd); \
        note('B', fd, 0, 0, 0, NULL, 0); \
        int result = refused_sync(fd) ? -1 : real(fd); \
        note('S', fd, result, 0, 0, NULL, 0); \
        return result; \
    }

SYNC(fsync)
SYNC(fdatasync)

/* --- directories -------------------------------------------------------------------------------------------------- */

static int named(char kind, int result, const char *path, const char *other)
{
    char room[2 * PATH_MAX], other_room[2 * PATH_MAX];
    path = absolute(path, room);
    other = other ? absolute(other, other_room) : "";
    if (result || !(watched_path(path) || watched_path(other))) return result;
    struct iovec parts[] = {{(void *)path, strlen(path) + 1}, {(void *)other, strlen(other)}};
    append(kind, -1, 0, 0, 0, parts, 2);
    return result;
}

#define NAMED(kind, name, types, values, path, other) \
    int name types \
    { \
        REAL(name); \
        pthread_mutex_lock(&lock); \
        int result = named(kind, real values, path, other); \
        pthread_mutex_unlock(&lock); \
        return result; \
    }

NAMED('U', unlink, (const char *path), (path), path, NULL)
NAMED('U', unlinkat, (int at, const char *path, int flags), (at, path, flags), path, NULL)
NAMED('M', mkdir, (const char *path, mode_t mode), (path, mode), path, NULL)
NAMED('M', mkdirat, (int at, const char *path, mode_t mode), (at, path, mode), path, NULL)
NAMED('D', rmdir, (const char *path), (path), path, NULL)
NAMED('R', rename, (const char *path, const char *other), (path, other), path, other)
NAMED('R', renameat, (int at, const char *path, int to, const char *other), (at, path, to, other), path, other)
NAMED('L', link, (const char *path, const char *other), (path, other), path, other)
NAMED('L', linkat, (int at, const char *path, int to, const char *other, int flags), (at, path, to, other, flags), path, other)

/* --- what nobody is to use on these files; the model would not know of it ------------------------------------------- */

#define UNKNOWN(type, name, types, values, fd) \
    type name types \
    { \
        REAL(name); \
        if (watched(fd)) note('X', fd, 0, 0, 0, #name, strlen(#name)); \
        return real values; \
    }

UNKNOWN(int, fallocate, (int fd, int mode, off_t first, off_t size), (fd, mode, first, size), fd)
UNKNOWN(int, fallocate64, (int fd, int mode, off64_t first, off64_t size), (fd, mode, first, size), fd)
UNKNOWN(int, posix_fallocate, (int fd, off_t first, off_t size), (fd, first, size), fd)
UNKNOWN(int, posix_fallocate64, (int fd, off64_t first, off64_t size), (fd, first, size), fd)
UNKNOWN(ssize_t, pwritev, (int fd, const struct iovec *parts, int count, off_t at), (fd, parts, count, at), fd)
UNKNOWN(ssize_t, pwritev64, (int fd, const struct iovec *parts, int count, off64_t at), (fd, parts, count, at), fd)
UNKNOWN(ssize_t, copy_file_range, (int in, off64_t *from, int fd, off64_t *to, size_t size, unsigned flags),
        (in, from, fd, to, size, flags), fd)

/* A file that is written through memory: the reader of the log decides whether that may be. */
#define MMAP(name, type) \
    void *name(void *place, size_t size, int protection, int flags, int fd, type offset) \
    { \
        REAL(name); \
        if ((protection & PROT_WRITE) && (flags & MAP_SHARED) && watched(fd)) note('A', fd, 0, offset, size, NULL, 0); \
        return real(place, size, protection, flags, fd, offset); \
    }

MMAP(mmap, off_t)
MMAP(mmap64, off64_t)

/* --- what is said ------------------------------------------------------------------------------------------------- */

/* Tells the sockets apart that a server has for its clients, also when the kernel gives a number again; 0: it is none. */
static uint64_t stream(int fd)
{
    struct sockaddr_un name;
    int type = 0;
    uint64_t cookie = 0;
    socklen_t size = sizeof name;
    if (log_fd < 0) return 0;
    int saved = errno;
    if (!getsockname(fd, (struct sockaddr *)&name, &size) && name.sun_family == AF_UNIX && size > sizeof name.sun_family) {
        size = sizeof type;
        if (!getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) && type == SOCK_STREAM) {
            size = sizeof cookie;
            if (getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &size)) abort();
        }
    }
    errno = saved;
    return cookie;
}

#define SAY(parts, count, call) \
    uint64_t cookie = stream(fd); \
    if (!cookie) return call; \
    append('P', fd, 0, cookie, 0, parts, count); /* before it is said */ \
    ssize_t result = call; \
    note('Q', fd, result, cookie, 0, NULL, 0); \
    return result;

ssize_t write(int fd, const void *data, size_t size)
{
    REAL(write);
    if (watched(fd)) {
        pthread_mutex_lock(&lock);
        struct stat now;
        int64_t offset = fcntl(fd, F_GETFL) & O_APPEND && !fstat(fd, &now) ? now.st_size : lseek(fd, 0, SEEK_CUR);
        ssize_t result = refused(fd, offset + size) ? -1 : written(fd, real(fd, data, size), offset, data);
        pthread_mutex_unlock(&lock);
        return result;
    }
    struct iovec part = {(void *)data, size};
    SAY(&part, 1, real(fd, data, size))
}

ssize_t send(int fd, const void *data, size_t size, int flags)
{
    REAL(send);
    struct iovec part = {(void *)data, size};
    SAY(&part, 1, real(fd, data, size, flags))
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    REAL(writev);
    if (watched(fd)) note('X', fd, 0, 0, 0, "writev", 6);
    SAY(parts, count, real(fd, parts, count))
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    REAL(sendmsg);
    SAY(message->msg_iov, message->msg_iovlen, real(fd, message, flags))
}
