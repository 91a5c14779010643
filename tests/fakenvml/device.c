/* Calls that read a card's values. */
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "fake.h"
#include "nvml_abi.h"

bool has(const subject_t *s, int key) { return key != K_none && s->keys[key].set; }
double get(const subject_t *s, int key) { return series_read(&s->keys[key], now_s()); }

nvmlReturn_t get_u64(const subject_t *s, int key, uint64_t *out) {
    if (!out) return E_INVALID_ARGUMENT;
    if (!has(s, key)) return E_NOT_SUPPORTED;
    *out = (uint64_t)get(s, key);
    return E_SUCCESS;
}

nvmlReturn_t get_u32(const subject_t *s, int key, unsigned *out) {
    uint64_t v = 0;
    nvmlReturn_t code = out ? get_u64(s, key, &v) : E_INVALID_ARGUMENT;
    if (!code) *out = (unsigned)v;
    return code;
}

static nvmlReturn_t get_pair(const subject_t *s, int first, int second, unsigned *a, unsigned *b) {
    if (!has(s, first) || !has(s, second)) return E_NOT_SUPPORTED;
    nvmlReturn_t code = get_u32(s, first, a);
    return code ? code : get_u32(s, second, b);
}

static nvmlReturn_t get_text(const char *text, char *out, unsigned size) {
    if (!out) return E_INVALID_ARGUMENT;
    if (!*text) return E_NOT_SUPPORTED;
    if (strlen(text) >= size) return E_INSUFFICIENT_SIZE;
    strcpy(out, text);
    return E_SUCCESS;
}

#define U32(fn, key)                                                                               \
    API fn(void *device, unsigned *out) {                                                          \
        BEGIN(device);                                                                             \
        return leave(get_u32(s, K_##key, out));                                                    \
    }
#define U64(fn, key)                                                                               \
    API fn(void *device, uint64_t *out) {                                                          \
        BEGIN(device);                                                                             \
        return leave(get_u64(s, K_##key, out));                                                    \
    }
#define PAIR(fn, first, second)                                                                    \
    API fn(void *device, unsigned *a, unsigned *b) {                                               \
        BEGIN(device);                                                                             \
        return leave(get_pair(s, K_##first, K_##second, a, b));                                    \
    }
#define STR(fn, member)                                                                            \
    API fn(void *device, char *out, unsigned size) {                                               \
        BEGIN(device);                                                                             \
        return leave(get_text(s->member, out, size));                                              \
    }
#define ARG(fn, k0, k1, k2, k3)                                                                    \
    API fn(void *device, unsigned which, unsigned *out) {                                          \
        static const int keys[] = {K_##k0, K_##k1, K_##k2, K_##k3};                                \
        BEGIN(device);                                                                             \
        return leave(which > 3 ? E_INVALID_ARGUMENT : get_u32(s, keys[which], out));               \
    }
#include "calls.def"
#undef U32
#undef U64
#undef PAIR
#undef STR
#undef ARG

/* --- calls with a struct, or arguments of their own --- */

API nvmlDeviceGetUtilizationRates(void *device, nvmlUtilization_t *out) {
    BEGIN(device);
    NEED(out);
    return leave(get_pair(s, K_util_gpu, K_util_memory, &out->gpu, &out->memory));
}

/* Engine utilisation comes with the length of the driver's own averaging window, in us. */
static nvmlReturn_t engine(const subject_t *s, int key, unsigned *util, unsigned *period) {
    if (!period) return E_INVALID_ARGUMENT;
    *period = 167000;
    return get_u32(s, key, util);
}
#define ENGINE(fn, key)                                                                            \
    API fn(void *device, unsigned *util, unsigned *period) {                                       \
        BEGIN(device);                                                                             \
        return leave(engine(s, K_##key, util, period));                                            \
    }
ENGINE(nvmlDeviceGetEncoderUtilization, util_encoder)
ENGINE(nvmlDeviceGetDecoderUtilization, util_decoder)
ENGINE(nvmlDeviceGetJpgUtilization, util_jpeg)
ENGINE(nvmlDeviceGetOfaUtilization, util_ofa)

API nvmlDeviceGetClock(void *device, unsigned type, unsigned id, unsigned *out) {
    static const int keys[4][4] = {
        {K_graphics_clock_mhz, K_sm_clock_mhz, K_mem_clock_mhz, K_video_clock_mhz},
        {K_app_graphics_clock_mhz, K_app_graphics_clock_mhz, K_app_mem_clock_mhz, K_none},
        {K_default_app_graphics_clock_mhz, K_default_app_graphics_clock_mhz,
         K_default_app_mem_clock_mhz, K_none},
        {K_boost_max_graphics_clock_mhz, K_boost_max_graphics_clock_mhz, K_boost_max_mem_clock_mhz,
         K_none}};
    BEGIN(device);
    NEED(out);
    return leave(type > 3 || id > 3 ? E_INVALID_ARGUMENT : get_u32(s, keys[id][type], out));
}

API nvmlDeviceGetTemperatureV(void *device, nvmlTemperature_t *out) {
    BEGIN(device);
    NEED(out);
    if (out->version != 0x100000C) return leave(E_ARGUMENT_VERSION_MISMATCH);
    if (out->sensor) return leave(E_INVALID_ARGUMENT);
    return leave(get_u32(s, K_temperature_c, (unsigned *)&out->temperature));
}

API nvmlDeviceGetMarginTemperature(void *device, nvmlMarginTemperature_t *out) {
    BEGIN(device);
    NEED(out);
    if (out->version != 0x1000008) return leave(E_ARGUMENT_VERSION_MISMATCH);
    if (!has(s, K_margin_c)) return leave(E_NOT_SUPPORTED);
    out->margin = (int)get(s, K_margin_c);
    return leave(E_SUCCESS);
}

API nvmlDeviceGetFanSpeed_v2(void *device, unsigned fan, unsigned *out) {
    BEGIN(device);
    NEED(out);
    if (has(s, K_fans) && fan >= get(s, K_fans)) return leave(E_INVALID_ARGUMENT);
    return leave(get_u32(s, K_fan_percent, out));
}

static nvmlReturn_t memory(const subject_t *s, nvmlMemory_v2_t *out) {
    if (!has(s, K_memory_total) || !has(s, K_memory_used)) return E_NOT_SUPPORTED;
    out->total = (uint64_t)get(s, K_memory_total);
    out->used = (uint64_t)get(s, K_memory_used);
    out->reserved = has(s, K_memory_reserved) ? (uint64_t)get(s, K_memory_reserved) : 0;
    out->free = out->total - out->used - out->reserved;
    return E_SUCCESS;
}

API nvmlDeviceGetMemoryInfo_v2(void *device, nvmlMemory_v2_t *out) {
    BEGIN(device);
    NEED(out);
    return leave(out->version != 0x02000028 ? E_ARGUMENT_VERSION_MISMATCH : memory(s, out));
}

/* The first version counts what the driver reserves as used. */
API nvmlDeviceGetMemoryInfo(void *device, nvmlMemory_t *out) {
    nvmlMemory_v2_t m = {0};
    BEGIN(device);
    NEED(out);
    nvmlReturn_t code = memory(s, &m);
    if (!code) *out = (nvmlMemory_t){m.total, m.free, m.used + m.reserved};
    return leave(code);
}

API nvmlDeviceGetBAR1MemoryInfo(void *device, nvmlBAR1Memory_t *out) {
    BEGIN(device);
    NEED(out);
    if (!has(s, K_bar1_total) || !has(s, K_bar1_used)) return leave(E_NOT_SUPPORTED);
    out->total = (uint64_t)get(s, K_bar1_total);
    out->used = (uint64_t)get(s, K_bar1_used);
    out->free = out->total - out->used;
    return leave(E_SUCCESS);
}

API nvmlDeviceGetPciInfo_v3(void *device, nvmlPciInfo_t *out) {
    BEGIN(device);
    NEED(out);
    memset(out, 0, sizeof *out);
    if (sscanf(s->pci, "%x:%x:%x", &out->domain, &out->bus, &out->device) != 3)
        return leave(E_NOT_SUPPORTED);
    snprintf(out->busId, sizeof out->busId, "%.31s", s->pci);
    snprintf(out->busIdLegacy, sizeof out->busIdLegacy, "%04X:%02X:%02X.0", out->domain & 0xFFFF,
             out->bus & 0xFF, out->device & 0xFF);
    out->pciDeviceId = (unsigned)get(s, K_pci_device_id);
    out->pciSubSystemId = (unsigned)get(s, K_pci_subsystem_id);
    return leave(E_SUCCESS);
}

API nvmlDeviceGetPciInfoExt(void *device, nvmlPciInfoExt_t *out) {
    BEGIN(device);
    NEED(out);
    if (out->version != 0x1000040) return leave(E_ARGUMENT_VERSION_MISMATCH);
    if (sscanf(s->pci, "%x:%x:%x", &out->domain, &out->bus, &out->device) != 3)
        return leave(E_NOT_SUPPORTED);
    snprintf(out->busId, sizeof out->busId, "%.31s", s->pci);
    out->pciDeviceId = (unsigned)get(s, K_pci_device_id);
    out->pciSubSystemId = (unsigned)get(s, K_pci_subsystem_id);
    out->baseClass = 3; /* display controller, as the kernel sees it */
    out->subClass = 2;
    return leave(E_SUCCESS);
}

/* --- ECC, retired pages, remapped rows --- */

API nvmlDeviceGetTotalEccErrors(void *device, unsigned type, unsigned counter, uint64_t *out) {
    static const int keys[] = {K_ecc_sbe_volatile, K_ecc_dbe_volatile, K_ecc_sbe_aggregate,
                               K_ecc_dbe_aggregate};
    BEGIN(device);
    NEED(out);
    return leave(type > 1 || counter > 1 ? E_INVALID_ARGUMENT
                                         : get_u64(s, keys[counter * 2 + type], out));
}

API nvmlDeviceGetMemoryErrorCounter(void *device, unsigned type, unsigned counter, unsigned where,
                                    uint64_t *out) {
    enum { DRAM = 2, SRAM = 7 };
    static const int keys[2][4] = {
        {K_ecc_sbe_volatile, K_ecc_dbe_volatile, K_ecc_sbe_aggregate, K_ecc_dbe_aggregate},
        {K_sram_sbe_volatile, K_sram_dbe_volatile, K_sram_sbe_aggregate, K_sram_dbe_aggregate}};
    BEGIN(device);
    NEED(out);
    if (type > 1 || counter > 1 || where > SRAM) return leave(E_INVALID_ARGUMENT);
    if (where != DRAM && where != SRAM) return leave(E_NOT_SUPPORTED);
    return leave(get_u64(s, keys[where == SRAM][counter * 2 + type], out));
}

API nvmlDeviceGetRemappedRows(void *device, unsigned *corrected, unsigned *uncorrected,
                              unsigned *pending, unsigned *failure) {
    BEGIN(device);
    nvmlReturn_t code =
        get_pair(s, K_remapped_correctable, K_remapped_uncorrectable, corrected, uncorrected);
    if (!code) code = get_pair(s, K_remapped_pending, K_remapped_failure, pending, failure);
    return leave(code);
}

API nvmlDeviceGetRowRemapperHistogram(void *device, nvmlRowRemapperHistogram_t *out) {
    BEGIN(device);
    NEED(out);
    nvmlReturn_t code = get_pair(s, K_rows_max, K_rows_high, &out->max, &out->high);
    if (!code) code = get_pair(s, K_rows_partial, K_rows_low, &out->partial, &out->low);
    if (!code) code = get_u32(s, K_rows_none, &out->none);
    return leave(code);
}

/* --- NVLink --- */

static nvmlReturn_t link_key(const subject_t *s, unsigned link, int key, unsigned *out) {
    if (!has(s, K_nvlinks)) return E_NOT_SUPPORTED;
    return link >= get(s, K_nvlinks) ? E_INVALID_ARGUMENT : get_u32(s, key, out);
}

API nvmlDeviceGetNvLinkState(void *device, unsigned link, unsigned *out) {
    BEGIN(device);
    NEED(out);
    nvmlReturn_t code = link_key(s, link, K_nvlinks, out);
    bool all = !has(s, K_nvlink_active);
    if (!code) *out = all || (((uint64_t)get(s, K_nvlink_active) >> link) & 1);
    return leave(code);
}

API nvmlDeviceGetNvLinkVersion(void *device, unsigned link, unsigned *out) {
    BEGIN(device);
    NEED(out);
    return leave(link_key(s, link, K_nvlink_version, out));
}

API nvmlDeviceGetNvLinkErrorCounter(void *device, unsigned link, unsigned kind, uint64_t *out) {
    static const int keys[] = {K_nvlink_replay_errors, K_nvlink_recovery_errors,
                               K_nvlink_crc_flit_errors, K_nvlink_crc_data_errors,
                               K_nvlink_ecc_data_errors};
    unsigned links;
    BEGIN(device);
    NEED(out);
    nvmlReturn_t code = kind > 4 ? E_INVALID_ARGUMENT : link_key(s, link, K_nvlinks, &links);
    return leave(code ? code : get_u64(s, keys[kind], out));
}

API nvmlDeviceGetNvLinkUtilizationCounter(void *device, unsigned link, unsigned counter,
                                          uint64_t *rx, uint64_t *tx) {
    unsigned links;
    BEGIN(device);
    nvmlReturn_t code = counter > 1 ? E_INVALID_ARGUMENT : link_key(s, link, K_nvlinks, &links);
    if (!code) code = get_u64(s, K_nvlink_rx_kib, rx);
    return leave(code ? code : get_u64(s, K_nvlink_tx_kib, tx));
}
