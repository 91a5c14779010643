/* The script's life while the library is in use, and what every call goes through. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "fake.h"

enum { MAX_HANDLES = 1024 };

script_t *script;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static handle_t handles[MAX_HANDLES];
static int n_handles, users;
static bool broken;           /* the newest script does not parse: no call answers until it does */
static double epoch = NAN;    /* CLOCK_MONOTONIC at the script's t = 0 */
static double looked_at = -1; /* when the script file was last looked at */
static struct stat seen;
static _Thread_local const char *calling;

static double clock_s(clockid_t id) {
    struct timespec t;
    clock_gettime(id, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

double now_s(void) { return clock_s(CLOCK_MONOTONIC) - (isnan(epoch) ? 0 : epoch); }

uint64_t stamp_us(double t) {
    double ago = now_s() - t;
    bool unix_clock = !script || script->unix_clock;
    return (uint64_t)((clock_s(unix_clock ? CLOCK_REALTIME : CLOCK_BOOTTIME) - ago) * 1e6);
}

static char *read_file(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &seen)) return NULL;
    size_t size = (size_t)seen.st_size, got = 0;
    char *text = calloc(1, size + 1);
    for (ssize_t n; got < size && (n = read(fd, text + got, size - got)) > 0;) got += (size_t)n;
    close(fd);
    return text;
}

static void load(const char *path) {
    char error[200] = "cannot be read";
    char *text = read_file(path);
    script_t *next = text ? script_parse(text, error, sizeof error) : NULL;
    free(text);
    broken = !next;
    if (broken) {
        fprintf(stderr, "fakenvml: %s: %s\n", path, error);
        return;
    }
    if (isnan(epoch)) epoch = isnan(next->epoch) ? clock_s(CLOCK_MONOTONIC) : next->epoch;
    script_adopt(next, script, now_s());
    script = next;
}

/* The file counts as changed by identity, size and time; looked at no oftener than every 10 ms. */
static void refresh(void) {
    const char *path = getenv("FAKENVML_SCRIPT");
    double now = clock_s(CLOCK_MONOTONIC);
    struct stat st;
    if (looked_at < 0 || now - looked_at >= 0.01) {
        bool first = looked_at < 0;
        looked_at = now;
        if (!path && first) fprintf(stderr, "fakenvml: FAKENVML_SCRIPT is not set\n");
        if (!path) broken = true;
        else if (first) load(path);
        else if (!stat(path, &st) &&
                 (st.st_ino != seen.st_ino || st.st_size != seen.st_size ||
                  st.st_mtim.tv_sec != seen.st_mtim.tv_sec ||
                  st.st_mtim.tv_nsec != seen.st_mtim.tv_nsec))
            load(path);
    }
    if (script) events_poll(now_s());
}

void pause_ms(double ms) {
    struct timespec t = {(time_t)(ms / 1e3), (long)(fmod(ms, 1e3) * 1e6)};
    pthread_mutex_unlock(&lock);
    nanosleep(&t, NULL);
    pthread_mutex_lock(&lock);
    refresh();
}

/* --- rules: errors, hangs and latencies by function name --- */

static size_t stem(const char *fn) { /* the length without _v2, _v3 */
    size_t n = strlen(fn);
    return n > 3 && !strncmp(fn + n - 3, "_v", 2) ? n - 3 : n;
}

static bool is_init(const char *fn) { return !strncmp(fn, "nvmlInit", 8); }

/* "*" is every call, a name without _vN every version of it, and any nvmlInit… all of them. */
static bool matches(const char *rule, const char *fn) {
    if (!strcmp(rule, "*") || !strcmp(rule, fn) || (is_init(rule) && is_init(fn))) return true;
    return stem(rule) == strlen(rule) && stem(fn) == strlen(rule) && !strncmp(rule, fn, stem(fn));
}

bool function_known(const char *fn) {
    static void *self;
    static const char *const versions[] = {"", "_v2", "_v3"};
    char name[FN_LEN + 4];
    Dl_info info;
    if (!strcmp(fn, "*")) return true;
    if (!self && dladdr((void *)&lock, &info))
        self = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    for (size_t i = 0; self && i < sizeof versions / sizeof *versions; i++) {
        snprintf(name, sizeof name, "%s%s", fn, versions[i]);
        if (dlsym(self, name)) return true;
    }
    return false;
}

static const rule_t *find(const rule_t *rules, int n, char kind, const char *fn) {
    double t = now_s();
    for (int i = n - 1; i >= 0; i--)
        if (rules[i].kind == kind && matches(rules[i].fn, fn) && t >= rules[i].from &&
            t < rules[i].until)
            return &rules[i];
    return NULL;
}

static subject_t *subject_of(const void *device) {
    const handle_t *h = device;
    return h >= handles && h < handles + n_handles ? script_find(script, h->uuid) : NULL;
}

static const rule_t *rule(char kind, const char *fn, const void *device) {
    if (!script) return NULL;
    for (const subject_t *s = device ? subject_of(device) : NULL; s; s = s->parent) {
        const rule_t *r = find(s->rules.items, s->rules.n, kind, fn);
        if (r) return r;
    }
    return find(script->rules.items, script->rules.n, kind, fn);
}

/* --- what every call goes through --- */

/* Like a process that waits in the kernel for the card: nothing but SIGKILL ends it. */
static void deafen(bool deaf) {
    static const int signals[] = {SIGTERM, SIGINT, SIGHUP};
    static struct sigaction before[3];
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    for (int i = 0; i < 3; i++)
        sigaction(signals[i], deaf ? &ignore : &before[i], deaf ? &before[i] : NULL);
}

static void hang(const char *fn, const void *device) {
    bool deaf = false;
    const rule_t *r;
    double began = now_s();
    /* The rule is looked up anew each time: a reload frees the old ones. */
    while ((r = rule('h', fn, device)) && (now_s() - began) * 1e3 < r->arg) {
        if (r->deaf && !deaf) deafen(deaf = true);
        pause_ms(5);
    }
    if (deaf) deafen(false);
}

static void start(const char *fn, const void *device) {
    const rule_t *r;
    double wait;
    calling = fn;
    pthread_mutex_lock(&lock);
    refresh();
    hang(fn, device);
    wait = (r = rule('l', fn, device)) ? r->arg : 0;
    if (wait > 0) pause_ms(wait);
}

nvmlReturn_t leave(nvmlReturn_t code) {
    const char *log = getenv("FAKENVML_LOG");
    char text[160];
    int fd = log ? open(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666) : -1;
    if (fd >= 0) {
        int n = snprintf(text, sizeof text, "%.6f %d %s %d\n", clock_s(CLOCK_MONOTONIC), getpid(),
                         calling, code);
        if (write(fd, text, (size_t)n) < 0) perror("fakenvml: FAKENVML_LOG");
        close(fd);
    }
    pthread_mutex_unlock(&lock);
    return code;
}

static nvmlReturn_t check(const char *fn, const void *device, bool needs_init) {
    const rule_t *r;
    if (broken) return E_UNKNOWN;
    if (needs_init && !users) return E_UNINITIALIZED;
    r = rule('e', fn, device);
    return r ? (nvmlReturn_t)r->arg : E_SUCCESS;
}

static nvmlReturn_t locate(const void *device, subject_t **out) {
    const handle_t *h = device;
    if (h < handles || h >= handles + n_handles) return E_INVALID_ARGUMENT;
    *out = script_find(script, h->uuid);
    if (!*out) return h->mig ? E_INVALID_ARGUMENT : E_GPU_IS_LOST;
    const subject_t *card = (*out)->parent ? (*out)->parent : *out;
    return card->lost || card->absent ? E_GPU_IS_LOST : E_SUCCESS;
}

nvmlReturn_t enter(const char *fn, void *device, subject_t **out) {
    nvmlReturn_t code;
    start(fn, device);
    code = check(fn, device, true);
    if (!code) code = locate(device, out);
    return code ? leave(code) : E_SUCCESS;
}

nvmlReturn_t enter_system(const char *fn) {
    start(fn, NULL);
    nvmlReturn_t code = check(fn, NULL, true);
    return code ? leave(code) : E_SUCCESS;
}

handle_t *handle_for(const subject_t *s) {
    for (int i = 0; i < n_handles; i++)
        if (!strcmp(handles[i].uuid, s->uuid)) return &handles[i];
    if (n_handles == MAX_HANDLES) abort();
    strcpy(handles[n_handles].uuid, s->uuid);
    handles[n_handles].mig = s->parent != NULL;
    return &handles[n_handles++];
}

/* --- init and shutdown --- */

static nvmlReturn_t init(const char *fn) {
    start(fn, NULL);
    nvmlReturn_t code = check(fn, NULL, false);
    if (!code) users++;
    return leave(code);
}

API nvmlInit(void) { return init(__func__); }
API nvmlInit_v2(void) { return init(__func__); }
API nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    return init(__func__);
}

API nvmlShutdown(void) {
    BEGIN_SYSTEM;
    users--;
    return leave(E_SUCCESS);
}
