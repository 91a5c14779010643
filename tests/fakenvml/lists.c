/* Calls that answer lists: processes, their utilisation, driver sample buffers, retired pages. */
#include <string.h>

#include "fake.h"
#include "nvml_abi.h"

enum { MAX_PROCESSES = 1024 };

/* A card's list holds the processes of its MIG devices too, with their instance ids. */
static int collect(const subject_t *s, char kind, process_t *out) {
    int n = 0;
    for (int i = 0; i < s->processes.n && n < MAX_PROCESSES; i++) {
        if (kind && s->processes.items[i].kind != kind) continue;
        out[n] = s->processes.items[i];
        if (s->parent && has(s, K_gi)) out[n].gi = (unsigned)get(s, K_gi);
        if (s->parent && has(s, K_ci)) out[n].ci = (unsigned)get(s, K_ci);
        n++;
    }
    for (int k = 0; !s->parent && k < MAX_MIG; k++)
        if (s->mig[k]) n += collect(s->mig[k], kind, out + n);
    return n;
}

/* `size` tells the first layout (16 bytes an entry) from the later one (24). */
static nvmlReturn_t list(const subject_t *s, char kind, unsigned *count, void *out, size_t size) {
    static process_t all[2 * MAX_PROCESSES];
    if (!count) return E_INVALID_ARGUMENT;
    unsigned n = (unsigned)collect(s, kind, all), room = out ? *count : 0;
    *count = n;
    if (room < n) return E_INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < n; i++) {
        nvmlProcessInfo_t p = {all[i].pid, all[i].bytes, all[i].gi, all[i].ci};
        memcpy((char *)out + i * size, &p, size);
    }
    return E_SUCCESS;
}

#define PROCESSES(fn, kind, type)                                                                  \
    API fn(void *device, unsigned *count, type *out) {                                             \
        BEGIN(device);                                                                             \
        return leave(list(s, kind, count, out, sizeof(type)));                                     \
    }
PROCESSES(nvmlDeviceGetComputeRunningProcesses, 'c', nvmlProcessInfo_v1_t)
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v2, 'c', nvmlProcessInfo_t)
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3, 'c', nvmlProcessInfo_t)
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses, 'g', nvmlProcessInfo_v1_t)
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v2, 'g', nvmlProcessInfo_t)
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3, 'g', nvmlProcessInfo_t)
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses, 'm', nvmlProcessInfo_v1_t)
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v2, 'm', nvmlProcessInfo_t)
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v3, 'm', nvmlProcessInfo_t)

API nvmlDeviceGetRunningProcessDetailList(void *device, nvmlProcessDetailList_t *out) {
    static process_t all[2 * MAX_PROCESSES];
    BEGIN(device);
    NEED(out);
    if (out->version != 0x1000018) return leave(E_ARGUMENT_VERSION_MISMATCH);
    if (out->mode > 2) return leave(E_INVALID_ARGUMENT);
    unsigned n = (unsigned)collect(s, "cgm"[out->mode], all);
    unsigned room = out->items ? out->n : 0;
    out->n = n;
    if (room < n) return leave(E_INSUFFICIENT_SIZE);
    for (unsigned i = 0; i < n; i++)
        out->items[i] =
            (nvmlProcessDetail_t){all[i].pid, all[i].bytes, all[i].gi, all[i].ci, UINT64_MAX};
    return leave(E_SUCCESS);
}

/* The driver samples processes once a second, and answers NOT_FOUND when none is newer. */
API nvmlDeviceGetProcessUtilization(void *device, nvmlProcessUtilizationSample_t *out,
                                    unsigned *count, unsigned long long last_seen) {
    static process_t all[2 * MAX_PROCESSES];
    BEGIN(device);
    unsigned n = 0;
    int listed = collect(s, 0, all);
    uint64_t stamp = stamp_us(floor(now_s()));
    for (int i = 0; i < listed; i++) n += all[i].sm >= 0 && stamp > last_seen;
    if (!count) return leave(E_INVALID_ARGUMENT);
    if (!n) return leave(E_NOT_FOUND);
    unsigned room = out ? *count : 0;
    *count = n;
    if (room < n) return leave(E_INSUFFICIENT_SIZE);
    for (int i = listed - 1; i >= 0; i--)
        if (all[i].sm >= 0)
            out[--n] = (nvmlProcessUtilizationSample_t){
                all[i].pid,           stamp,
                (unsigned)all[i].sm,  (unsigned)all[i].mem,
                (unsigned)all[i].enc, (unsigned)all[i].dec};
    return leave(E_SUCCESS);
}

/* --- sample buffers --- */

/* The card as the script in force at time `t` had it. */
static const subject_t *then(const subject_t *s, double t) {
    if (t >= script->loaded_at || !script->before) return s;
    const subject_t *was = script_find(script->before, s->uuid);
    return was ? was : s;
}

static double setting(const subject_t *s, int key, double otherwise) {
    return has(s, key) ? get(s, key) : otherwise;
}

/* Samples lie on a fixed grid of times; none is taken while `samples_idle` is not 0. */
static unsigned samples(const subject_t *s, int key, uint64_t last_seen, unsigned room,
                        nvmlSample_t *out) {
    double period = setting(s, K_sample_period_ms, 20) / 1e3, now = now_s();
    int buffer = (int)setting(s, K_sample_buffer, 120);
    long last = (long)floor(now / period);
    unsigned n = 0;
    for (long i = last - buffer + 1; i <= last; i++) {
        double t = (double)i * period;
        const subject_t *was = then(s, t);
        bool idle = has(was, K_samples_idle) && series_value(&was->keys[K_samples_idle], t) != 0;
        if (t < 0 || idle || !has(was, key) || stamp_us(t) <= last_seen) continue;
        if (out && n == room) break;
        if (out) {
            out[n].timeStamp = stamp_us(t);
            out[n].value.ull = 0;
            out[n].value.ui = (unsigned)series_read(&was->keys[key], t);
        }
        n++;
    }
    return n;
}

API nvmlDeviceGetSamples(void *device, unsigned type, unsigned long long last_seen,
                         unsigned *value_type, unsigned *count, nvmlSample_t *out) {
    static const int keys[] = {K_power_milliwatts, K_util_gpu,     K_util_memory,
                               K_util_encoder,     K_util_decoder, K_sm_clock_mhz,
                               K_mem_clock_mhz,    K_none,         K_util_jpeg,
                               K_util_ofa};
    BEGIN(device);
    if (!value_type || !count || type >= sizeof keys / sizeof *keys)
        return leave(E_INVALID_ARGUMENT);
    if (!has(s, keys[type])) return leave(E_NOT_SUPPORTED);
    *value_type = VALUE_UINT;
    unsigned n = samples(s, keys[type], last_seen, out ? *count : 0, out);
    if (!n) return leave(E_NOT_FOUND);
    *count = out ? n : (unsigned)setting(s, K_sample_buffer, 120);
    return leave(E_SUCCESS);
}

/* --- retired pages --- */

static nvmlReturn_t pages(const subject_t *s, unsigned cause, unsigned *count, uint64_t *out,
                          uint64_t *times) {
    int key = cause ? K_retired_dbe : K_retired_sbe;
    if (cause > 1 || !count) return E_INVALID_ARGUMENT;
    if (!has(s, key)) return E_NOT_SUPPORTED;
    unsigned n = (unsigned)get(s, key), room = out ? *count : 0;
    *count = n;
    if (room < n) return E_INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < n; i++) {
        out[i] = 0x10000ull * (i + 1);
        if (times) times[i] = stamp_us(0);
    }
    return E_SUCCESS;
}

API nvmlDeviceGetRetiredPages(void *device, unsigned cause, unsigned *count, uint64_t *out) {
    BEGIN(device);
    return leave(pages(s, cause, count, out, NULL));
}

API nvmlDeviceGetRetiredPages_v2(void *device, unsigned cause, unsigned *count, uint64_t *out,
                                 uint64_t *times) {
    BEGIN(device);
    return leave(pages(s, cause, count, out, times));
}
