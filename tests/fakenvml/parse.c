/* The script's grammar (README.md) into a script_t. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fake.h"

enum { MAX_WORDS = 512 };

typedef struct {
    script_t *script;
    char *words[MAX_WORDS + 1]; /* NULL after the last */
    int at;
    char *error;
    size_t error_size;
} parser_t;

static bool fail(parser_t *p, const char *what, const char *word) {
    if (!*p->error) snprintf(p->error, p->error_size, "%s '%s'", what, word ? word : "end of line");
    return false;
}

static const char *peek(const parser_t *p) { return p->words[p->at]; }
static bool is(const parser_t *p, const char *word) { return peek(p) && !strcmp(peek(p), word); }
static bool accept(parser_t *p, const char *word) { return is(p, word) && ++p->at; }

static bool parse_number(const char *word, double *out) {
    char *end;
    if (!word || !*word) return false;
    double v = strtod(word, &end);
    if (*end) return false;
    *out = v;
    return true;
}

static bool number(parser_t *p, double *out) {
    if (!parse_number(peek(p), out)) return fail(p, "expected a number, got", peek(p));
    p->at++;
    return true;
}

static bool unsigned_number(parser_t *p, unsigned limit, unsigned *out) {
    double v;
    const char *word = peek(p);
    if (!number(p, &v)) return false;
    if (!(v >= 0 && v < limit)) return fail(p, "out of range:", word);
    *out = (unsigned)v;
    return true;
}

static bool word(parser_t *p, char *out, size_t size) {
    if (!peek(p)) return fail(p, "expected a word, got", NULL);
    if (strlen(peek(p)) >= size) return fail(p, "too long:", peek(p));
    strcpy(out, p->words[p->at++]);
    return true;
}

static void add_point(series_t *s, double t, double v, bool ramp) {
    s->points = list_grow(s->points, s->n, sizeof *s->points);
    s->points[s->n++] = (point_t){t, v, ramp};
}

/* "@5 700" steps to 700 at 5 s, "~5 700" gets there in a straight line, "repeat 10" starts over. */
static bool later_points(parser_t *p, series_t *s) {
    double t, v;
    while (peek(p) && (*peek(p) == '@' || *peek(p) == '~')) {
        const char *mark = p->words[p->at++];
        if (!parse_number(mark + 1, &t)) return fail(p, "expected @SECONDS, got", mark);
        if (t < s->points[s->n - 1].t) return fail(p, "times must not go back:", mark);
        if (!number(p, &v)) return false;
        add_point(s, t, v, *mark == '~');
    }
    if (!accept(p, "repeat")) return true;
    if (!number(p, &s->period)) return false;
    return s->period > 0 || fail(p, "repeat needs a time above 0, in", "repeat");
}

static bool series(parser_t *p, series_t *s, bool always_counter) {
    double v;
    free(s->points);
    *s = (series_t){.set = true, .counter = always_counter};
    if (accept(p, "count")) {
        s->counter = true;
        if (!number(p, &s->base)) return false;
        if (!parse_number(peek(p), &v)) return true; /* stands still, or follows power_milliwatts */
    }
    if (!number(p, &v)) return false;
    add_point(s, 0, v, false);
    return later_points(p, s);
}

static bool rule(parser_t *p, rule_t **items, int *n) {
    rule_t r = {.from = -INFINITY, .until = INFINITY, .arg = INFINITY, .kind = *p->words[p->at++]};
    if (!word(p, r.fn, sizeof r.fn)) return false;
    if (!function_known(r.fn)) return fail(p, "no such NVML function:", r.fn);
    if (r.kind == 'e') {
        int code = peek(p) ? error_code(peek(p)) : -1;
        if (code < 0) return fail(p, "not an NVML return code:", peek(p));
        r.arg = code;
        p->at++;
    } else if (r.kind == 'l') {
        if (!number(p, &r.arg)) return false;
    } else {
        if (parse_number(peek(p), &r.arg)) p->at++;
        r.deaf = accept(p, "deaf");
    }
    if (accept(p, "from") && !number(p, &r.from)) return false;
    if (accept(p, "until") && !number(p, &r.until)) return false;
    *items = list_grow(*items, *n, sizeof r);
    (*items)[(*n)++] = r;
    return true;
}

static bool is_rule(const parser_t *p) {
    return is(p, "error") || is(p, "hang") || is(p, "latency");
}

static bool process(parser_t *p, subject_t *s) {
    process_t q = {.gi = NO_INSTANCE, .ci = NO_INSTANCE, .sm = -1};
    char kind[16];
    double v;
    if (!unsigned_number(p, NO_INSTANCE, &q.pid) || !word(p, kind, sizeof kind)) return false;
    q.kind = kind[0];
    if (strcmp(kind, "compute") && strcmp(kind, "graphics") && strcmp(kind, "mps"))
        return fail(p, "expected compute, graphics or mps, got", kind);
    q.bytes = UINT64_MAX; /* NVML_VALUE_NOT_AVAILABLE */
    if (!accept(p, "na")) {
        if (!number(p, &v)) return false;
        q.bytes = (uint64_t)v;
    }
    const struct { const char *name; int *to; } shares[] = {
        {"sm", &q.sm}, {"mem", &q.mem}, {"enc", &q.enc}, {"dec", &q.dec}};
    for (size_t i = 0; i < sizeof shares / sizeof *shares; i++) {
        if (!accept(p, shares[i].name)) continue;
        if (!number(p, &v)) return false;
        *shares[i].to = (int)v;
    }
    s->processes.items = list_grow(s->processes.items, s->processes.n, sizeof q);
    s->processes.items[s->processes.n++] = q;
    return true;
}

static bool field(parser_t *p, subject_t *s, bool code) {
    field_t f = {.scope = NO_SCOPE};
    char id[24], *scope;
    double v;
    if (!word(p, id, sizeof id)) return false;
    if ((scope = strchr(id, ':'))) {
        *scope++ = 0;
        if (!parse_number(scope, &v)) return fail(p, "expected FIELD:SCOPE, got", id);
        f.scope = (unsigned)v;
    }
    if (!parse_number(id, &v) || !(v > 0 && v < MAX_FIELD)) return fail(p, "no such field:", id);
    f.id = (unsigned)v;
    if (code) {
        if ((f.code = peek(p) ? error_code(peek(p)) : -1) < 0)
            return fail(p, "not an NVML return code:", peek(p));
        p->at++;
    } else if (!series(p, &f.value, false)) {
        return false;
    }
    s->fields.items = list_grow(s->fields.items, s->fields.n, sizeof f);
    s->fields.items[s->fields.n++] = f;
    return true;
}

static bool gpm(parser_t *p, subject_t *s, bool code) {
    unsigned id;
    if (!unsigned_number(p, MAX_GPM, &id)) return false;
    if (!code) {
        bool cumulative = id >= GPM_CUMULATIVE_FIRST && id <= GPM_CUMULATIVE_LAST;
        return series(p, &s->gpm[id], cumulative);
    }
    if ((s->gpm_return[id] = peek(p) ? error_code(peek(p)) : -1) < 0)
        return fail(p, "not an NVML return code:", peek(p));
    p->at++;
    return true;
}

static const char *const KEY_NAMES[KEYS] = {
#define KEY(name) #name,
#include "keys.def"
#undef KEY
};

static char *text_key(subject_t *s, const char *name) {
    const struct { const char *name; char *to; } texts[] = {
        {"name", s->name},       {"uuid", s->uuid},   {"serial", s->serial},
        {"pci", s->pci},         {"vbios", s->vbios}, {"part_number", s->part_number},
        {"inforom", s->inforom}, {"gsp_version", s->gsp_version}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (!strcmp(name, texts[i].name)) return texts[i].to;
    return NULL;
}

static bool subject_key(parser_t *p, subject_t *s) {
    if (is_rule(p)) return rule(p, &s->rules.items, &s->rules.n);
    const char *name = p->words[p->at++];
    char *text = text_key(s, name);
    if (text) return word(p, text, NAME_LEN);
    if (!strcmp(name, "lost")) return s->lost = true;
    if (!strcmp(name, "absent")) return s->absent = true;
    if (!strcmp(name, "process")) return process(p, s);
    if (!strcmp(name, "gpm")) return gpm(p, s, false);
    if (!strcmp(name, "gpm_return")) return gpm(p, s, true);
    if (!strcmp(name, "field")) return field(p, s, false);
    if (!strcmp(name, "field_return")) return field(p, s, true);
    for (int k = 0; k < KEYS; k++)
        if (!strcmp(name, KEY_NAMES[k])) return series(p, &s->keys[k], false);
    return fail(p, "unknown key", name);
}

static void set_constant(subject_t *s, int key, double v) {
    s->keys[key].set = true;
    add_point(&s->keys[key], 0, v, false);
}

static subject_t *device(script_t *sc, int slot) {
    for (; sc->n_devices <= slot; sc->n_devices++) {
        int i = sc->n_devices;
        subject_t *s = sc->devices[i] = calloc(1, sizeof *s);
        s->slot = i;
        s->mig_slot = -1;
        strcpy(s->name, "NVIDIA H100 80GB HBM3");
        snprintf(s->uuid, NAME_LEN, "GPU-00000000-0000-0000-0000-%012d", i);
        snprintf(s->pci, NAME_LEN, "00000000:%02X:00.0", 0x18 + i);
        set_constant(s, K_pci_device_id, 0x233010de);
        set_constant(s, K_pci_subsystem_id, 0x16c110de);
        set_constant(s, K_minor, i);
        set_constant(s, K_event_types, 0x1b);
    }
    return sc->devices[slot];
}

static subject_t *mig_device(subject_t *gpu, int slot) {
    if (gpu->mig[slot]) return gpu->mig[slot];
    subject_t *s = gpu->mig[slot] = calloc(1, sizeof *s);
    s->parent = gpu;
    s->slot = gpu->slot;
    s->mig_slot = slot;
    snprintf(s->uuid, NAME_LEN, "MIG-00000000-0000-0000-%04d-%012d", gpu->slot, slot);
    return s;
}

static bool subject_line(parser_t *p, subject_t *s) {
    unsigned slot;
    if (accept(p, "mig")) {
        if (!unsigned_number(p, MAX_MIG, &slot)) return false;
        s = mig_device(s, (int)slot);
    }
    while (peek(p))
        if (!subject_key(p, s)) return false;
    return true;
}

/* "device 3 …", "device 0-7 …", "device * …" (all cards named so far) */
static bool device_line(parser_t *p) {
    int first = 0, last = p->script->n_devices - 1, end = 0;
    const char *which = peek(p);
    if (!accept(p, "*")) {
        if (!which || sscanf(which, "%d%n-%d%n", &first, &end, &last, &end) < 1 || which[end])
            return fail(p, "expected a card, a range or *, got", which);
        if (!strchr(which, '-')) last = first;
        if (first < 0 || last >= MAX_DEVICES || last < first) return fail(p, "bad range", which);
        p->at++;
    }
    int keys_at = p->at;
    for (int i = first; i <= last; i++) {
        p->at = keys_at;
        if (!subject_line(p, device(p->script, i))) return false;
    }
    return true;
}

static bool event_type(const char *name, uint64_t *out) {
    static const struct { const char *name; uint64_t bit; } types[] = {
        {"sbe", 1}, {"dbe", 2}, {"pstate", 4}, {"xid", 8}, {"clock", 16}, {"power", 128}};
    double v;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (!strcmp(name, types[i].name)) return (*out = types[i].bit) != 0;
    if (!parse_number(name, &v) || v < 1) return false;
    return (*out = (uint64_t)v) != 0;
}

static bool event_line(parser_t *p) {
    event_t e = {.gi = NO_INSTANCE, .ci = NO_INSTANCE, .at = NAN};
    unsigned slot;
    char type[24];
    double data;
    if (!unsigned_number(p, MAX_DEVICES, &slot) || !word(p, type, sizeof type)) return false;
    if (!event_type(type, &e.type)) return fail(p, "no such event type:", type);
    if (!number(p, &data)) return false;
    if (accept(p, "at") && !number(p, &e.at)) return false;
    if (accept(p, "gi") && !unsigned_number(p, NO_INSTANCE, &e.gi)) return false;
    if (accept(p, "ci") && !unsigned_number(p, NO_INSTANCE, &e.ci)) return false;
    e.slot = (int)slot;
    e.data = (uint64_t)data;
    p->script->events.items = list_grow(p->script->events.items, p->script->events.n, sizeof e);
    p->script->events.items[p->script->events.n++] = e;
    return true;
}

static bool line(parser_t *p) {
    script_t *sc = p->script;
    unsigned n;
    double v;
    if (is_rule(p)) return rule(p, &sc->rules.items, &sc->rules.n);
    const char *name = p->words[p->at++];
    if (!strcmp(name, "device")) return device_line(p);
    if (!strcmp(name, "event")) return event_line(p);
    if (!strcmp(name, "driver")) return word(p, sc->driver, NAME_LEN);
    if (!strcmp(name, "nvml")) return word(p, sc->nvml, NAME_LEN);
    if (!strcmp(name, "epoch")) return number(p, &sc->epoch);
    if (!strcmp(name, "sample_clock"))
        return (sc->unix_clock = accept(p, "unix")) || accept(p, "boot") ||
               fail(p, "expected unix or boot, got", peek(p));
    if (!strcmp(name, "cuda")) {
        if (!number(p, &v)) return false;
        sc->cuda = (int)v;
        return true;
    }
    if (!strcmp(name, "devices")) {
        if (!unsigned_number(p, MAX_DEVICES + 1, &n)) return false;
        if (n) device(sc, (int)n - 1);
        return true;
    }
    if (!strcmp(name, "missing")) return fail(p, "a symbol is taken out at build time:", peek(p));
    return fail(p, "unknown key", name);
}

static bool split(parser_t *p, char *text) {
    int n = 0;
    for (char *c = text; *c;) {
        while (*c == ' ' || *c == '\t' || *c == '\r') c++;
        if (!*c || *c == '#') break;
        if (n == MAX_WORDS) return fail(p, "too many words after", p->words[n - 1]);
        char stop = *c == '"' ? '"' : ' ';
        p->words[n++] = stop == '"' ? ++c : c;
        while (*c && *c != stop && (stop == '"' || (*c != '\t' && *c != '\r'))) c++;
        if (stop == '"' && !*c) return fail(p, "no closing quote for", p->words[n - 1]);
        if (*c) *c++ = 0;
    }
    p->words[n] = NULL;
    p->at = 0;
    return true;
}

static bool finish(parser_t *p) {
    for (int i = 0; i < p->script->n_devices; i++) {
        subject_t *s = p->script->devices[i];
        series_t *energy = &s->keys[K_energy_millijoules], *power = &s->keys[K_power_milliwatts];
        for (int k = 0; energy->counter && !energy->n && k < power->n; k++)
            add_point(energy, power->points[k].t, power->points[k].v, power->points[k].ramp);
        if (energy->n) energy->period = energy->period > 0 ? energy->period : power->period;
        for (int k = 0; k < MAX_MIG; k++)
            if (s->mig[k] && !*s->mig[k]->name)
                snprintf(s->mig[k]->name, NAME_LEN, "%.80s MIG", s->name);
    }
    return true;
}

script_t *script_parse(const char *text, char *error, size_t size) {
    parser_t p = {.script = calloc(1, sizeof *p.script), .error = error, .error_size = size};
    char *copy = strdup(text), *rest = copy, *one;
    int number_of_line = 0;
    *error = 0;
    p.script->epoch = NAN;
    p.script->unix_clock = true;
    strcpy(p.script->driver, "595.58.03");
    while ((one = strsep(&rest, "\n"))) {
        number_of_line++;
        bool good = split(&p, one) && (!peek(&p) || line(&p));
        if (good && peek(&p)) good = fail(&p, "unexpected", peek(&p));
        if (!good) {
            size_t used = strlen(error);
            snprintf(error + used, size - used, " in line %d", number_of_line);
            break;
        }
    }
    free(copy);
    if (!*error && finish(&p)) return p.script;
    script_free(p.script);
    return NULL;
}
