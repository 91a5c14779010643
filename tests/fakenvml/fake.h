/* The fake's inner types. NVML's own struct layouts are in nvml_abi.h. */
#ifndef FAKE_H
#define FAKE_H
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
#define ERR(code, name, text) E_##name = code,
#include "errors.def"
#undef ERR
} nvmlReturn_t;

enum { /* numeric keys */
#define KEY(name) K_##name,
#include "keys.def"
#undef KEY
    K_none,
    KEYS = K_none,
};

enum { MAX_DEVICES = 64, MAX_MIG = 16, MAX_GPM = 477, MAX_FIELD = 320, NAME_LEN = 96, FN_LEN = 80 };
enum { GPM_CUMULATIVE_FIRST = 248, GPM_CUMULATIVE_LAST = 404 };
#define NO_INSTANCE 0xFFFFFFFFu
#define NO_SCOPE 0xFFFFFFFFu

typedef struct {
    double t, v;
    bool ramp; /* reached linearly from the point before, not by a step */
} point_t;

/* A value over time: gauge, or with `counter` a base plus the integral of a rate. */
typedef struct {
    bool set, counter;
    double base, period;
    int n;
    point_t *points;
    double origin, carry; /* the integral up to `origin`, taken over from the script before */
} series_t;

typedef struct {
    unsigned id, scope;
    int code; /* of field_return, else 0 */
    series_t value;
} field_t;

typedef struct {
    unsigned pid, gi, ci;
    char kind; /* c g m: compute, graphics, MPS */
    uint64_t bytes;
    int sm, mem, enc, dec; /* sm < 0: no utilisation sample */
} process_t;

typedef struct {
    char fn[FN_LEN];
    char kind; /* e h l: error, hang, latency */
    bool deaf; /* a hang that SIGTERM does not end */
    double arg, from, until;
} rule_t;

typedef struct {
    int slot;
    unsigned gi, ci;
    uint64_t type, data;
    double at; /* NAN: fires when it appears in a reloaded script */
    bool fired;
} event_t;

#define LIST(type) struct { type *items; int n; }

/* A card, or a MIG device of one. */
typedef struct subject {
    struct subject *parent;
    int slot, mig_slot;
    bool lost, absent;
    char name[NAME_LEN], uuid[NAME_LEN], serial[NAME_LEN], pci[NAME_LEN], vbios[NAME_LEN];
    char part_number[NAME_LEN], inforom[NAME_LEN], gsp_version[NAME_LEN];
    series_t keys[KEYS], gpm[MAX_GPM];
    int gpm_return[MAX_GPM];
    LIST(field_t) fields;
    LIST(process_t) processes;
    LIST(rule_t) rules;
    struct subject *mig[MAX_MIG];
} subject_t;

typedef struct script {
    char driver[NAME_LEN], nvml[NAME_LEN];
    int cuda, n_devices;
    bool unix_clock;
    double epoch, loaded_at;
    subject_t *devices[MAX_DEVICES];
    LIST(rule_t) rules;
    LIST(event_t) events;
    struct script *before; /* the version this one replaced: sample buffers reach back into it */
} script_t;

/* What a caller holds: it outlives scripts, so it names its card by UUID. */
typedef struct {
    char uuid[NAME_LEN];
    bool mig;
    bool streaming;
    void *gpm_last;
} handle_t;

/* series.c */
double series_value(const series_t *s, double t);
double series_total(const series_t *s, double t); /* integral since the beginning */
double series_read(const series_t *s, double t);
double series_mean(const series_t *s, double from, double to);
void series_carry(series_t *to, const series_t *from, double now);

/* parse.c, script.c */
script_t *script_parse(const char *text, char *error, size_t size);
void script_free(script_t *s);
subject_t *script_find(script_t *s, const char *uuid);
void script_adopt(script_t *now, script_t *before, double t);
void *list_grow(void *items, int n, size_t size);
int error_code(const char *word); /* -1: no such code */

/* runtime.c */
extern script_t *script;
double now_s(void);
uint64_t stamp_us(double t);
nvmlReturn_t enter(const char *fn, void *device, subject_t **out);
nvmlReturn_t enter_system(const char *fn);
nvmlReturn_t leave(nvmlReturn_t code);
void pause_ms(double ms); /* gives the lock up meanwhile, and looks at the script again after */
handle_t *handle_for(const subject_t *s);
bool function_known(const char *fn);

/* device.c */
bool has(const subject_t *s, int key);
double get(const subject_t *s, int key);
nvmlReturn_t get_u32(const subject_t *s, int key, unsigned *out);
nvmlReturn_t get_u64(const subject_t *s, int key, uint64_t *out);

/* event.c */
void events_poll(double t);
void events_adopt(script_t *now, const script_t *before, double t);

#define BEGIN(device)                                                                              \
    subject_t *s;                                                                                  \
    do {                                                                                           \
        nvmlReturn_t entered = enter(__func__, (device), &s);                                      \
        if (entered) return entered;                                                               \
    } while (0)
#define BEGIN_SYSTEM                                                                               \
    do {                                                                                           \
        nvmlReturn_t entered = enter_system(__func__);                                             \
        if (entered) return entered;                                                               \
    } while (0)
#define NEED(pointer)                                                                              \
    do {                                                                                           \
        if (!(pointer)) return leave(E_INVALID_ARGUMENT);                                          \
    } while (0)
#define API __attribute__((visibility("default"))) nvmlReturn_t
#endif
