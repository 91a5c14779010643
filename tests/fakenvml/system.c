/* Calls about the driver, finding cards, and MIG devices. */
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "fake.h"
#include "nvml_abi.h"

static nvmlReturn_t text(const char *value, char *out, unsigned size) {
    if (!out) return E_INVALID_ARGUMENT;
    return (unsigned)snprintf(out, size, "%s", value) < size ? E_SUCCESS : E_INSUFFICIENT_SIZE;
}

API nvmlSystemGetDriverVersion(char *out, unsigned size) {
    BEGIN_SYSTEM;
    return leave(text(script->driver, out, size));
}

API nvmlSystemGetNVMLVersion(char *out, unsigned size) {
    char value[NAME_LEN + 4];
    BEGIN_SYSTEM;
    snprintf(value, sizeof value, "13.%s", script->driver);
    return leave(text(*script->nvml ? script->nvml : value, out, size));
}

static nvmlReturn_t cuda(int *out) {
    if (!script->cuda) return E_NOT_SUPPORTED;
    *out = script->cuda;
    return E_SUCCESS;
}

API nvmlSystemGetCudaDriverVersion(int *out) {
    BEGIN_SYSTEM;
    NEED(out);
    return leave(cuda(out));
}

API nvmlSystemGetCudaDriverVersion_v2(int *out) {
    BEGIN_SYSTEM;
    NEED(out);
    return leave(cuda(out));
}

API nvmlSystemGetProcessName(unsigned pid, char *out, unsigned size) {
    char path[40], name[256] = "";
    BEGIN_SYSTEM;
    snprintf(path, sizeof path, "/proc/%u/comm", pid);
    FILE *f = fopen(path, "re");
    if (!f) return leave(E_NOT_FOUND);
    if (fgets(name, sizeof name, f)) name[strcspn(name, "\n")] = 0;
    fclose(f);
    return leave(text(name, out, size));
}

/* --- finding cards: an index counts the cards that are not absent --- */

static subject_t *nth(unsigned index) {
    for (int i = 0; i < script->n_devices; i++)
        if (!script->devices[i]->absent && index-- == 0) return script->devices[i];
    return NULL;
}

static unsigned count(void) {
    unsigned n = 0;
    while (nth(n)) n++;
    return n;
}

static nvmlReturn_t hand_out(const subject_t *s, nvmlReturn_t otherwise, void **out) {
    if (!s || s->absent) return otherwise;
    if (s->lost) return E_GPU_IS_LOST;
    *out = handle_for(s);
    return E_SUCCESS;
}

API nvmlDeviceGetCount_v2(unsigned *out) {
    BEGIN_SYSTEM;
    NEED(out);
    *out = count();
    return leave(E_SUCCESS);
}

API nvmlDeviceGetCount(unsigned *out) {
    BEGIN_SYSTEM;
    NEED(out);
    *out = count();
    return leave(E_SUCCESS);
}

API nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out) {
    BEGIN_SYSTEM;
    NEED(out);
    return leave(hand_out(nth(index), E_INVALID_ARGUMENT, out));
}

API nvmlDeviceGetHandleByIndex(unsigned index, void **out) {
    BEGIN_SYSTEM;
    NEED(out);
    return leave(hand_out(nth(index), E_INVALID_ARGUMENT, out));
}

API nvmlDeviceGetHandleByUUID(const char *uuid, void **out) {
    BEGIN_SYSTEM;
    NEED(out);
    return leave(uuid ? hand_out(script_find(script, uuid), E_NOT_FOUND, out) : E_INVALID_ARGUMENT);
}

API nvmlDeviceGetHandleBySerial(const char *serial, void **out) {
    subject_t *found = NULL;
    BEGIN_SYSTEM;
    NEED(out);
    for (int i = 0; serial && i < script->n_devices; i++)
        if (*serial && !strcmp(serial, script->devices[i]->serial)) found = script->devices[i];
    return leave(hand_out(found, E_NOT_FOUND, out));
}

/* Domains come with four or eight digits: ids are compared as numbers. */
static bool same_pci(const char *a, const char *b) {
    unsigned x[3], y[3];
    return sscanf(a, "%x:%x:%x", x, x + 1, x + 2) == 3 &&
           sscanf(b, "%x:%x:%x", y, y + 1, y + 2) == 3 && !memcmp(x, y, sizeof x);
}

API nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **out) {
    subject_t *found = NULL;
    BEGIN_SYSTEM;
    NEED(out);
    for (int i = 0; id && i < script->n_devices; i++)
        if (same_pci(id, script->devices[i]->pci)) found = script->devices[i];
    return leave(hand_out(found, E_NOT_FOUND, out));
}

API nvmlDeviceGetIndex(void *device, unsigned *out) {
    BEGIN(device);
    NEED(out);
    *out = (unsigned)s->mig_slot;
    for (unsigned i = 0; !s->parent && nth(i); i++)
        if (nth(i) == s) *out = i;
    return leave(E_SUCCESS);
}

/* --- MIG --- */

API nvmlDeviceGetMigDeviceHandleByIndex(void *device, unsigned index, void **out) {
    BEGIN(device);
    NEED(out);
    if (s->parent || !has(s, K_mig_mode)) return leave(E_NOT_SUPPORTED);
    if (index >= MAX_MIG || get(s, K_mig_mode) == 0 || !s->mig[index]) return leave(E_NOT_FOUND);
    return leave(hand_out(s->mig[index], E_NOT_FOUND, out));
}

API nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *device, void **out) {
    BEGIN(device);
    NEED(out);
    return leave(hand_out(s->parent, E_INVALID_ARGUMENT, out));
}

API nvmlDeviceIsMigDeviceHandle(void *device, unsigned *out) {
    BEGIN(device);
    NEED(out);
    *out = s->parent != NULL;
    return leave(E_SUCCESS);
}

API nvmlDeviceGetAttributes_v2(void *device, nvmlDeviceAttributes_t *out) {
    BEGIN(device);
    NEED(out);
    if (!has(s, K_sms)) return leave(E_NOT_SUPPORTED);
    unsigned *const numbers[] = {&out->sms,    &out->copyEngines, &out->decoders, &out->encoders,
                                 &out->jpegs,  &out->ofas,        &out->giSlices, &out->ciSlices};
    static const int keys[] = {K_sms,   K_copy_engines, K_decoders,  K_encoders,
                               K_jpegs, K_ofas,         K_gi_slices, K_ci_slices};
    memset(out, 0, sizeof *out);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) get_u32(s, keys[i], numbers[i]);
    uint64_t mib = 0;
    get_u64(s, K_memory_mib, &mib);
    out->memorySizeMB = mib;
    return leave(E_SUCCESS);
}

/* Cards of one node hang off the same host bridge at the least: enough to draw a tree. */
API nvmlDeviceGetTopologyCommonAncestor(void *a, void *b, unsigned *out) {
    BEGIN(a);
    NEED(out);
    *out = a == b ? 0 : 40; /* INTERNAL, NODE */
    return leave(s ? E_SUCCESS : E_UNKNOWN);
}
