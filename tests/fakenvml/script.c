/* What becomes of scripts once parsed: looking cards up, taking counters over, freeing. */
#include <stdlib.h>
#include <string.h>

#include "fake.h"

static const struct { int code; const char *name, *text; } ERRORS[] = {
#define ERR(code, name, text) {code, #name, text},
#include "errors.def"
#undef ERR
};
enum { N_ERRORS = sizeof ERRORS / sizeof *ERRORS };

int error_code(const char *word) {
    char *end;
    long number = strtol(word, &end, 10);
    if (*word && !*end) return number >= 0 && number <= 999 ? (int)number : -1;
    if (!strncmp(word, "NVML_", 5)) word += 5;
    if (!strncmp(word, "ERROR_", 6)) word += 6;
    for (int i = 0; i < N_ERRORS; i++)
        if (!strcmp(word, ERRORS[i].name)) return ERRORS[i].code;
    return -1;
}

__attribute__((visibility("default"))) const char *nvmlErrorString(nvmlReturn_t result) {
    for (int i = 0; i < N_ERRORS; i++)
        if (ERRORS[i].code == (int)result) return ERRORS[i].text;
    return "Unknown Error";
}

/* Grows by powers of two: `n` items are held, room for one more is returned. */
void *list_grow(void *items, int n, size_t size) {
    if (n & (n - 1)) return items;
    items = realloc(items, (n ? 2 * (size_t)n : 1) * size);
    if (!items) abort();
    return items;
}

static void subject_free(subject_t *s) {
    if (!s) return;
    for (int k = 0; k < KEYS; k++) free(s->keys[k].points);
    for (int k = 0; k < MAX_GPM; k++) free(s->gpm[k].points);
    for (int k = 0; k < s->fields.n; k++) free(s->fields.items[k].value.points);
    for (int k = 0; k < MAX_MIG; k++) subject_free(s->mig[k]);
    free(s->fields.items);
    free(s->processes.items);
    free(s->rules.items);
    free(s);
}

void script_free(script_t *s) {
    if (!s) return;
    for (int i = 0; i < s->n_devices; i++) subject_free(s->devices[i]);
    free(s->rules.items);
    free(s->events.items);
    free(s);
}

subject_t *script_find(script_t *s, const char *uuid) {
    for (int i = 0; s && i < s->n_devices; i++) {
        if (!strcmp(s->devices[i]->uuid, uuid)) return s->devices[i];
        for (int k = 0; k < MAX_MIG; k++)
            if (s->devices[i]->mig[k] && !strcmp(s->devices[i]->mig[k]->uuid, uuid))
                return s->devices[i]->mig[k];
    }
    return NULL;
}

static const series_t *same_field(const subject_t *s, const field_t *f) {
    static const series_t unset;
    for (int i = s ? s->fields.n - 1 : -1; i >= 0; i--) {
        const field_t *g = &s->fields.items[i];
        if (!g->code && g->id == f->id && g->scope == f->scope) return &g->value;
    }
    return &unset;
}

static void subject_adopt(subject_t *now, script_t *before, double t) {
    static const series_t unset;
    if (!now) return;
    const subject_t *was = script_find(before, now->uuid);
    for (int k = 0; k < KEYS; k++) series_carry(&now->keys[k], was ? &was->keys[k] : &unset, t);
    for (int k = 0; k < MAX_GPM; k++) series_carry(&now->gpm[k], was ? &was->gpm[k] : &unset, t);
    for (int k = 0; k < now->fields.n; k++)
        series_carry(&now->fields.items[k].value, same_field(was, &now->fields.items[k]), t);
    for (int k = 0; k < MAX_MIG; k++) subject_adopt(now->mig[k], before, t);
}

/* Puts a new version of the script in the place of the one before. Two versions are kept. */
void script_adopt(script_t *now, script_t *before, double t) {
    now->loaded_at = before ? t : 0;
    now->before = before;
    if (before) {
        script_free(before->before);
        before->before = NULL;
        for (int i = 0; i < now->n_devices; i++) subject_adopt(now->devices[i], before, t);
    }
    events_adopt(now, before, t);
}
