/* GPU performance monitoring: samples hold integrals, so a pair of them gives a mean. */
#include <stdlib.h>
#include <string.h>

#include "fake.h"
#include "nvml_abi.h"

enum { SAMPLE_MAGIC = 0x67706d73, REFRESH_MS = 100 };

typedef struct {
    unsigned magic;
    bool taken;
    double at;
    handle_t *source;
    bool known[MAX_GPM];
    double total[MAX_GPM];
} sample_t;

static bool supported(const subject_t *s) {
    if (has(s, K_gpm_supported)) return get(s, K_gpm_supported) != 0;
    for (int i = 0; i < MAX_GPM; i++)
        if (s->gpm[i].set || s->gpm_return[i]) return true;
    return false;
}

API nvmlGpmQueryDeviceSupport(void *device, nvmlGpmSupport_t *out) {
    BEGIN(device);
    NEED(out);
    if (out->version != 1) return leave(E_ARGUMENT_VERSION_MISMATCH);
    out->isSupportedDevice = supported(s);
    return leave(E_SUCCESS);
}

API nvmlGpmSampleAlloc(sample_t **out) {
    BEGIN_SYSTEM;
    NEED(out);
    *out = calloc(1, sizeof **out);
    (*out)->magic = SAMPLE_MAGIC;
    return leave(E_SUCCESS);
}

static bool valid(const sample_t *sample) { return sample && sample->magic == SAMPLE_MAGIC; }

API nvmlGpmSampleFree(sample_t *sample) {
    BEGIN_SYSTEM;
    if (!valid(sample)) return leave(E_INVALID_ARGUMENT);
    sample->magic = 0;
    free(sample);
    return leave(E_SUCCESS);
}

/* The hardware is read at most every 100 ms: sooner, the caller gets the last reading again. */
static nvmlReturn_t take(const subject_t *s, sample_t *out) {
    handle_t *source = handle_for(s);
    sample_t *last = source->gpm_last;
    double now = now_s();
    if (!valid(out)) return E_INVALID_ARGUMENT;
    if (!supported(s)) return E_NOT_SUPPORTED;
    if (!last) last = source->gpm_last = calloc(1, sizeof *last);
    if (!last->taken || (now - last->at) * 1e3 >= REFRESH_MS) {
        *last = (sample_t){.magic = SAMPLE_MAGIC, .taken = true, .at = now, .source = source};
        for (int i = 0; i < MAX_GPM; i++) {
            last->known[i] = s->gpm[i].set;
            last->total[i] = s->gpm[i].set ? series_total(&s->gpm[i], now) : 0;
            if (s->gpm[i].counter) last->total[i] += s->gpm[i].base;
        }
    }
    *out = *last;
    return E_SUCCESS;
}

API nvmlGpmSampleGet(void *device, sample_t *sample) {
    BEGIN(device);
    return leave(take(s, sample));
}

API nvmlGpmMigSampleGet(void *device, unsigned gi, sample_t *sample) {
    BEGIN(device);
    for (int k = 0; k < MAX_MIG; k++)
        if (s->mig[k] && has(s->mig[k], K_gi) && (unsigned)get(s->mig[k], K_gi) == gi)
            return leave(take(s->mig[k], sample));
    return leave(E_NOT_FOUND);
}

static const struct { unsigned first, last; const char *name, *unit; } NAMES[] = {
    {1, 1, "GPU_UTIL", "%"},         {2, 2, "SM_UTIL", "%"},
    {3, 3, "SM_OCCUPANCY", "%"},     {4, 4, "INTEGER_UTIL", "%"},
    {5, 5, "ANY_TENSOR_UTIL", "%"},  {6, 6, "DFMA_TENSOR_UTIL", "%"},
    {7, 7, "HMMA_TENSOR_UTIL", "%"}, {8, 8, "DMMA_TENSOR_UTIL", "%"},
    {9, 9, "IMMA_TENSOR_UTIL", "%"}, {10, 10, "DRAM_BW_UTIL", "%"},
    {11, 11, "FP64_UTIL", "%"},      {12, 12, "FP32_UTIL", "%"},
    {13, 13, "FP16_UTIL", "%"},      {20, 21, "PCIE_PER_SEC", "MiB/s"},
    {60, 97, "NVLINK_PER_SEC", "MiB/s"},
    {248, 254, "CYCLES", "cycles"},  {255, 256, "PCIE_BYTES", "bytes"},
    {257, 260, "CYCLES", "cycles"},  {261, 404, "NVLINK_BYTES", "bytes"}};

static void describe(nvmlGpmMetric_t *m) {
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++) {
        if (m->metricId < NAMES[i].first || m->metricId > NAMES[i].last) continue;
        m->shortName = m->longName = NAMES[i].name;
        m->unit = NAMES[i].unit;
    }
}

/* A gauge answers its mean over the pair, a counter where it stood at the later sample. Over no
 * time at all a mean is 0/0. */
static nvmlReturn_t measure(const subject_t *s, const sample_t *a, const sample_t *b,
                            nvmlGpmMetric_t *m) {
    unsigned id = m->metricId;
    if (!id || id >= MAX_GPM) return E_INVALID_ARGUMENT;
    if (s->gpm_return[id]) return (nvmlReturn_t)s->gpm_return[id];
    if (!b->known[id]) return E_NOT_SUPPORTED;
    if (!a->known[id]) return E_NO_DATA;
    if (s->gpm[id].counter) m->value = b->total[id];
    else if (isnan(series_value(&s->gpm[id], b->at)) || b->at <= a->at) m->value = NAN;
    else m->value = (b->total[id] - a->total[id]) / (b->at - a->at);
    return E_SUCCESS;
}

API nvmlGpmMetricsGet(nvmlGpmMetricsGet_t *get) {
    const sample_t *a = get ? get->sample1 : NULL, *b = get ? get->sample2 : NULL;
    BEGIN(valid(a) ? a->source : NULL);
    if (get->version != 1) return leave(E_ARGUMENT_VERSION_MISMATCH);
    if (!valid(b) || b->source != a->source || b->at < a->at) return leave(E_INVALID_ARGUMENT);
    if (!get->numMetrics || get->numMetrics >= MAX_GPM) return leave(E_INVALID_ARGUMENT);
    for (unsigned i = 0; i < get->numMetrics; i++) {
        describe(&get->metrics[i]);
        get->metrics[i].nvmlReturn = measure(s, a, b, &get->metrics[i]);
    }
    return leave(E_SUCCESS);
}

API nvmlGpmSetStreamingEnabled(void *device, unsigned state) {
    BEGIN(device);
    if (state > 1) return leave(E_INVALID_ARGUMENT);
    handle_for(s)->streaming = state;
    return leave(E_SUCCESS);
}

API nvmlGpmQueryIfStreamingEnabled(void *device, unsigned *state) {
    BEGIN(device);
    *state = handle_for(s)->streaming;
    return leave(E_SUCCESS);
}
