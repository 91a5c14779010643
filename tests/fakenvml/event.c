/* Event sets. An event fires once, at its time or when its line appears in a reloaded script. */
#include <stdlib.h>
#include <string.h>

#include "fake.h"
#include "nvml_abi.h"

enum { MAX_SETS = 64, MAX_REGISTERED = 128, QUEUE = 256 };

typedef struct {
    bool open;
    struct { handle_t *device; uint64_t types; double since; } registered[MAX_REGISTERED];
    int n_registered;
    nvmlEventData_t queue[QUEUE];
    unsigned head, tail;
} set_t;

static set_t sets[MAX_SETS];

static void offer(set_t *set, const event_t *e, const char *uuid, double t) {
    for (int i = 0; set->open && i < set->n_registered; i++) {
        handle_t *device = set->registered[i].device;
        bool wanted = (set->registered[i].types & e->type) && set->registered[i].since <= t;
        if (!wanted || strcmp(device->uuid, uuid) || set->tail - set->head == QUEUE) continue;
        set->queue[set->tail++ % QUEUE] = (nvmlEventData_t){device, e->type, e->data, e->gi, e->ci};
        return; /* once a set, however often the card is registered in it */
    }
}

static void fire(event_t *e, double t) {
    e->fired = true;
    if (e->slot >= script->n_devices) return;
    for (int i = 0; i < MAX_SETS; i++) offer(&sets[i], e, script->devices[e->slot]->uuid, t);
}

void events_poll(double t) {
    for (int i = 0; i < script->events.n; i++) {
        event_t *e = &script->events.items[i];
        if (e->fired || (!isnan(e->at) && e->at > t)) continue;
        fire(e, isnan(e->at) ? t : e->at);
    }
}

static bool same(const event_t *a, const event_t *b) {
    bool same_time = isnan(a->at) ? isnan(b->at) : a->at == b->at;
    return same_time && a->slot == b->slot && a->type == b->type && a->data == b->data &&
           a->gi == b->gi && a->ci == b->ci;
}

/* The k-th of equal lines is the k-th of the script before; only one more than it had is new. With
 * no script before, lines without a time are the past: a driver does not tell old events. */
void events_adopt(script_t *now, const script_t *before, double t) {
    for (int i = 0; i < now->events.n; i++) {
        event_t *e = &now->events.items[i];
        int nth = 0;
        for (int k = 0; k < i; k++) nth += same(&now->events.items[k], e);
        e->fired = !before && (isnan(e->at) || e->at < t);
        for (int k = 0; before && k < before->events.n; k++)
            if (same(&before->events.items[k], e) && nth-- == 0)
                e->fired = before->events.items[k].fired;
    }
}

static set_t *set_of(void *handle) {
    for (int i = 0; i < MAX_SETS; i++)
        if (handle == &sets[i] && sets[i].open) return &sets[i];
    return NULL;
}

API nvmlEventSetCreate(void **out) {
    BEGIN_SYSTEM;
    for (int i = 0; i < MAX_SETS; i++) {
        if (sets[i].open) continue;
        memset(&sets[i], 0, sizeof sets[i]);
        sets[i].open = true;
        *out = &sets[i];
        return leave(E_SUCCESS);
    }
    return leave(E_INSUFFICIENT_RESOURCES);
}

API nvmlEventSetFree(void *handle) {
    BEGIN_SYSTEM;
    set_t *set = set_of(handle);
    if (!set) return leave(E_INVALID_ARGUMENT);
    set->open = false;
    return leave(E_SUCCESS);
}

API nvmlDeviceRegisterEvents(void *device, unsigned long long types, void *handle) {
    BEGIN(device);
    set_t *set = set_of(handle);
    if (!set) return leave(E_INVALID_ARGUMENT);
    if (!has(s, K_event_types) || types & ~(uint64_t)get(s, K_event_types))
        return leave(E_NOT_SUPPORTED);
    if (set->n_registered == MAX_REGISTERED) return leave(E_INSUFFICIENT_RESOURCES);
    set->registered[set->n_registered].device = device;
    set->registered[set->n_registered].types = types;
    set->registered[set->n_registered++].since = now_s();
    return leave(E_SUCCESS);
}

static nvmlReturn_t wait_for(void *handle, nvmlEventData_t *out, unsigned timeout_ms) {
    double end = now_s() + timeout_ms / 1e3;
    for (;;) {
        set_t *set = set_of(handle); /* another thread may have freed it meanwhile */
        if (!set || !out) return E_INVALID_ARGUMENT;
        if (set->head != set->tail) {
            *out = set->queue[set->head++ % QUEUE];
            return E_SUCCESS;
        }
        if (now_s() >= end) return E_TIMEOUT;
        const char *late = getenv("FAKENVML_EVENTS_LATE_MS"); /* how late an event may be */
        pause_ms(fmin(late ? atof(late) : 250, (end - now_s()) * 1e3));
    }
}

API nvmlEventSetWait_v2(void *handle, nvmlEventData_t *out, unsigned timeout_ms) {
    BEGIN_SYSTEM;
    return leave(wait_for(handle, out, timeout_ms));
}

/* The first version leaves the instance ids alone. */
API nvmlEventSetWait(void *handle, nvmlEventData_t *out, unsigned timeout_ms) {
    nvmlEventData_t data;
    BEGIN_SYSTEM;
    nvmlReturn_t code = wait_for(handle, &data, timeout_ms);
    if (!code) memcpy(out, &data, offsetof(nvmlEventData_t, gi));
    return leave(code);
}
