/* Values over time: piecewise constant or linear, optionally periodic, and their integrals. */
#include "fake.h"

static double wrap(const series_t *s, double t) {
    if (t < 0) t = 0;
    return s->period > 0 ? fmod(t, s->period) : t;
}

static double between(const point_t *a, const point_t *b, double t) {
    if (!b->ramp || b->t <= a->t) return a->v;
    return a->v + (b->v - a->v) * (t - a->t) / (b->t - a->t);
}

double series_value(const series_t *s, double t) {
    t = wrap(s, t);
    int i = 0;
    while (i + 1 < s->n && s->points[i + 1].t <= t) i++;
    if (s->n == 0) return 0;
    return i + 1 < s->n ? between(&s->points[i], &s->points[i + 1], t) : s->points[i].v;
}

/* The integral from 0 to t within one period. NaN stretches count nothing, so they never poison
 * the means after them. */
static double area(const series_t *s, double t) {
    double sum = 0;
    for (int i = 0; i < s->n && s->points[i].t < t; i++) {
        const point_t *a = &s->points[i], *b = i + 1 < s->n ? a + 1 : NULL;
        double end = b && b->t < t ? b->t : t;
        double last = b ? between(a, b, end) : a->v;
        double piece = (a->v + last) / 2 * (end - a->t);
        if (!isnan(piece)) sum += piece;
    }
    return sum;
}

static double integral(const series_t *s, double t) {
    if (t < 0) t = 0;
    if (s->period <= 0) return area(s, t);
    return floor(t / s->period) * area(s, s->period) + area(s, fmod(t, s->period));
}

double series_total(const series_t *s, double t) {
    return s->carry + integral(s, t) - integral(s, s->origin);
}

double series_read(const series_t *s, double t) {
    return s->counter ? s->base + series_total(s, t) : series_value(s, t);
}

double series_mean(const series_t *s, double from, double to) {
    if (from < 0) from = 0;
    return to > from ? (integral(s, to) - integral(s, from)) / (to - from) : series_value(s, to);
}

/* A reload must not make counters jump: they go on from where they stood, at the new rate. One
 * whose base was changed starts again from that base, as after a driver reload. */
void series_carry(series_t *to, const series_t *from, double now) {
    if (!to->set) return;
    to->origin = now;
    bool restarted = to->counter && from->base != to->base;
    if (from->set && from->counter == to->counter && !restarted)
        to->carry = series_total(from, now);
}
