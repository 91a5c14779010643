/* nvmlDeviceGetFieldValues and the older calls that answer the same counters. */
#include "fake.h"
#include "nvml_abi.h"

/* Fields that follow a key when the script names no field line for them. */
static const struct { unsigned field; int key; } FOLLOWS[] = {
    {1, K_ecc_mode},           {2, K_ecc_pending},          {3, K_ecc_sbe_volatile},
    {4, K_ecc_dbe_volatile},   {5, K_ecc_sbe_aggregate},    {6, K_ecc_dbe_aggregate},
    {29, K_retired_sbe},       {30, K_retired_dbe},         {31, K_retired_pending},
    {82, K_memory_temperature_c}, {83, K_energy_millijoules}, {91, K_nvlinks},
    {94, K_pcie_replay},       {142, K_remapped_correctable}, {143, K_remapped_uncorrectable},
    {144, K_remapped_pending}, {145, K_remapped_failure},   {186, K_power_milliwatts},
    {187, K_min_limit_milliwatts}, {188, K_max_limit_milliwatts},
    {189, K_default_limit_milliwatts}, {190, K_enforced_limit_milliwatts},
    {192, K_power_limit_milliwatts},
};
enum { N_FOLLOWS = sizeof FOLLOWS / sizeof *FOLLOWS, POWER_AVERAGE = 185 };

static bool is_wide(unsigned id) {
    return (id >= 3 && id <= 28) || (id >= 32 && id <= 81) || id == 83 || (id >= 96 && id <= 131) ||
           (id >= 138 && id <= 141) || (id >= 148 && id <= 163) || id == 191 ||
           (id >= 197 && id <= 222) || (id >= 235 && id <= 250) || (id >= 269 && id <= 271) ||
           id >= 289;
}

/* The last line of a field counts; one without a scope answers every scope. */
static const field_t *scripted(const subject_t *s, unsigned id, unsigned scope) {
    for (int i = s->fields.n - 1; i >= 0; i--) {
        const field_t *f = &s->fields.items[i];
        if (f->id == id && (f->scope == scope || f->scope == NO_SCOPE)) return f;
    }
    return NULL;
}

static nvmlReturn_t read_field(const subject_t *s, unsigned id, unsigned scope, double *out) {
    const series_t *power = &s->keys[K_power_milliwatts];
    const field_t *f = scripted(s, id, scope);
    double t = now_s();
    if (f && f->code) return (nvmlReturn_t)f->code;
    if (f) {
        *out = series_read(&f->value, t);
        return E_SUCCESS;
    }
    if (id == POWER_AVERAGE && power->set) { /* the driver averages over the last second */
        *out = series_mean(power, fmax(power->origin, t - 1), t);
        return E_SUCCESS;
    }
    for (int i = 0; i < N_FOLLOWS; i++) {
        if (FOLLOWS[i].field != id || !has(s, FOLLOWS[i].key)) continue;
        *out = get(s, FOLLOWS[i].key);
        return E_SUCCESS;
    }
    return E_NOT_SUPPORTED;
}

API nvmlDeviceGetFieldValues(void *device, int n, nvmlFieldValue_t *values) {
    BEGIN(device);
    if (n < 1 || !values) return leave(E_INVALID_ARGUMENT);
    for (int i = 0; i < n; i++) {
        nvmlFieldValue_t *f = &values[i];
        double v;
        f->nvmlReturn = read_field(s, f->fieldId, f->scopeId, &v);
        f->timestamp = (long long)stamp_us(now_s());
        f->latencyUsec = 0;
        if (f->nvmlReturn) continue;
        f->valueType = is_wide(f->fieldId) || v > UINT32_MAX ? VALUE_ULL : VALUE_UINT;
        f->value.ull = (uint64_t)v;
    }
    return leave(E_SUCCESS);
}

API nvmlDeviceGetViolationStatus(void *device, unsigned policy, nvmlViolationTime_t *out) {
    static const unsigned char fields[] = {74, 75, 76, 77, 78, 79, 0, 0, 0, 0, 80, 81};
    double v;
    BEGIN(device);
    if (policy >= sizeof fields || !fields[policy]) return leave(E_INVALID_ARGUMENT);
    nvmlReturn_t code = read_field(s, fields[policy], 0, &v);
    if (!code) *out = (nvmlViolationTime_t){stamp_us(now_s()), (uint64_t)v};
    return leave(code);
}
