/* Resizing, as Pillow 13 does it: weights of 22 bits, an 8 bit picture between the passes. */

#include "kernels.h"
#include <math.h>

#ifndef M_PI
#define M_PI 3.14159265358979323846
#endif

#define WEIGHT_BITS 22
#define HALF (1 << (WEIGHT_BITS - 1))
#define LANES 8 /* rows that the horizontal pass takes at once */

typedef struct {
    int first, count;
} Span;

typedef struct {
    Span *spans;
    int32_t *weights;
    int stride; /* weights of one output position */
} Taps;

static double box(double x) { return x > -0.5 && x <= 0.5 ? 1.0 : 0.0; }

static double bilinear(double x) {
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

static double hamming(double x) {
    x = fabs(x);
    if (x == 0.0) return 1.0;
    if (x >= 1.0) return 0.0;
    x *= M_PI;
    return sin(x) / x * (0.54f + 0.46f * cos(x)); /* Pillow's constants are single, too. */
}

static double bicubic(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

static double sinc(double x) {
    if (x == 0.0) return 1.0;
    x *= M_PI;
    return sin(x) / x;
}

static double lanczos(double x) { return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0; }

/* By Pillow's numbers of its filters; 0, nearest, is no convolution. */
static const struct {
    double (*weight)(double);
    double support;
} FILTERS[] = {{NULL, 0}, {lanczos, 3}, {bilinear, 1}, {bicubic, 2}, {box, 0.5}, {hamming, 1}};

static void free_taps(Taps *taps) {
    free(taps->spans);
    free(taps->weights);
}

/* Which input positions each output position takes, and how much of each. */
static int make_taps(Taps *taps, int in, int out, int filter) {
    double scale = (double)in / out, stretch = scale < 1.0 ? 1.0 : scale;
    double support = FILTERS[filter].support * stretch, squeeze = 1.0 / stretch;
    double *exact;
    taps->stride = (int)ceil(support) * 2 + 1;
    taps->spans = malloc(sizeof(Span) * (size_t)out);
    taps->weights = malloc(sizeof(int32_t) * (size_t)out * taps->stride);
    exact = malloc(sizeof(double) * taps->stride);
    if (!taps->spans || !taps->weights || !exact) {
        free(exact);
        free_taps(taps);
        return -1;
    }
    for (int to = 0; to < out; to++) {
        double center = (to + 0.5) * scale, sum = 0.0;
        int first = (int)(center - support + 0.5), end = (int)(center + support + 0.5);
        int32_t *weights = taps->weights + (size_t)to * taps->stride;
        if (first < 0) first = 0;
        if (end > in) end = in;
        for (int i = 0; i < end - first; i++) {
            exact[i] = FILTERS[filter].weight((i + first - center + 0.5) * squeeze);
            sum += exact[i];
        }
        for (int i = 0; i < end - first; i++) {
            double weight = (sum != 0.0 ? exact[i] / sum : exact[i]) * (1 << WEIGHT_BITS);
            weights[i] = (int32_t)(weight < 0 ? weight - 0.5 : weight + 0.5);
        }
        taps->spans[to].first = first;
        taps->spans[to].count = end - first;
    }
    free(exact);
    return 0;
}

static inline uint8_t level(int32_t sum) {
    int32_t value = sum >> WEIGHT_BITS;
    return value < 0 ? 0 : value > 255 ? 255 : (uint8_t)value;
}

/* One output row from rows of `width` bytes. */
FOR_EVERY_CPU static void mix_rows(const uint8_t *in, uint8_t *out, size_t width, Span span, const int32_t *weights,
                                   int32_t *sums) {
    int tap = 0;
    for (size_t i = 0; i < width; i++) sums[i] = HALF;
    for (; tap + 1 < span.count; tap += 2) {
        const uint8_t *one = in + (size_t)(span.first + tap) * width, *two = one + width;
        int32_t first = weights[tap], second = weights[tap + 1];
        for (size_t i = 0; i < width; i++) sums[i] += first * one[i] + second * two[i];
    }
    if (tap < span.count) {
        const uint8_t *one = in + (size_t)(span.first + tap) * width;
        for (size_t i = 0; i < width; i++) sums[i] += weights[tap] * one[i];
    }
    for (size_t i = 0; i < width; i++) out[i] = level(sums[i]);
}

static int resize_down(const uint8_t *in, int height, size_t width, uint8_t *out, int new_height, int filter) {
    Taps taps;
    int32_t *sums = malloc(sizeof(int32_t) * width);
    if (!sums || make_taps(&taps, height, new_height, filter)) {
        free(sums);
        return -1;
    }
    for (int row = 0; row < new_height; row++)
        mix_rows(in, out + row * width, width, taps.spans[row], taps.weights + (size_t)row * taps.stride, sums);
    free_taps(&taps);
    free(sums);
    return 0;
}

/* Rows side by side, [W * CHANNELS, LANES]: what lies at one place of all of them is mixed alike. */
FOR_EVERY_CPU static void to_lanes(const uint8_t *in, size_t width, int rows, int32_t *lanes) {
    for (int lane = 0; lane < LANES; lane++) {
        const uint8_t *row = in + (size_t)(lane < rows ? lane : rows - 1) * width;
        for (size_t i = 0; i < width; i++) lanes[i * LANES + lane] = row[i];
    }
}

FOR_EVERY_CPU static void mix_lanes(const int32_t *restrict lanes, uint8_t *restrict out, int new_width,
                                    const Taps *taps) {
    for (int to = 0; to < new_width; to++) {
        const int32_t *weights = taps->weights + (size_t)to * taps->stride;
        const int32_t *from = lanes + (size_t)taps->spans[to].first * CHANNELS * LANES;
        int32_t sums[CHANNELS * LANES];
        for (int i = 0; i < CHANNELS * LANES; i++) sums[i] = HALF;
        for (int tap = 0; tap < taps->spans[to].count; tap++, from += CHANNELS * LANES)
            for (int i = 0; i < CHANNELS * LANES; i++) sums[i] += weights[tap] * from[i];
        for (int i = 0; i < CHANNELS * LANES; i++) out[(size_t)to * CHANNELS * LANES + i] = level(sums[i]);
    }
}

static int resize_across(const uint8_t *in, int height, int width, uint8_t *out, int new_width, int filter) {
    size_t row_bytes = (size_t)width * CHANNELS, new_bytes = (size_t)new_width * CHANNELS;
    Taps taps;
    int32_t *lanes = malloc(sizeof(int32_t) * row_bytes * LANES);
    uint8_t *mixed = malloc(new_bytes * LANES);
    if (!lanes || !mixed || make_taps(&taps, width, new_width, filter)) {
        free(lanes);
        free(mixed);
        return -1;
    }
    for (int top = 0; top < height; top += LANES) {
        int rows = height - top < LANES ? height - top : LANES;
        to_lanes(in + top * row_bytes, row_bytes, rows, lanes);
        mix_lanes(lanes, mixed, new_width, &taps);
        for (int lane = 0; lane < rows; lane++) {
            uint8_t *row = out + (top + lane) * new_bytes;
            for (size_t i = 0; i < new_bytes; i++) row[i] = mixed[i * LANES + lane];
        }
    }
    free_taps(&taps);
    free(lanes);
    free(mixed);
    return 0;
}

static int resize_both(const uint8_t *in, int height, int width, uint8_t *out, int new_height, int new_width,
                       int filter) {
    /* Pillow's rule since 13.0. The order is seen in the result: the picture between has 8 bits. */
    int down_first = new_height < height && height - new_height > 2 * (width - new_width);
    size_t between = (size_t)(down_first ? new_height : height) * (down_first ? width : new_width) * CHANNELS;
    uint8_t *middle;
    int failed;
    if (new_height == height) return resize_across(in, height, width, out, new_width, filter);
    if (new_width == width) return resize_down(in, height, (size_t)width * CHANNELS, out, new_height, filter);
    middle = malloc(between);
    if (!middle) return -1;
    if (down_first)
        failed = resize_down(in, height, (size_t)width * CHANNELS, middle, new_height, filter) ||
                 resize_across(middle, new_height, width, out, new_width, filter);
    else
        failed = resize_across(in, height, width, middle, new_width, filter) ||
                 resize_down(middle, height, (size_t)new_width * CHANNELS, out, new_height, filter);
    free(middle);
    return failed ? -1 : 0;
}

PyObject *py_resize(PyObject *module, PyObject *args) {
    PyObject *from, *to;
    Py_buffer in, out;
    int height, width, new_height, new_width, filter, failed;
    if (!PyArg_ParseTuple(args, "OiiOiii", &from, &height, &width, &to, &new_height, &new_width, &filter)) return NULL;
    if (height < 1 || width < 1 || new_height < 1 || new_width < 1 || filter < 1 || filter > 5) {
        PyErr_SetString(PyExc_ValueError, "sides begin at 1, filters are 1 to 5");
        return NULL;
    }
    if (get(from, &in, PyBUF_SIMPLE, (Py_ssize_t)height * width * CHANNELS)) return NULL;
    if (get(to, &out, PyBUF_WRITABLE, (Py_ssize_t)new_height * new_width * CHANNELS)) {
        PyBuffer_Release(&in);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    failed = resize_both(in.buf, height, width, out.buf, new_height, new_width, filter);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&in);
    PyBuffer_Release(&out);
    return finish(failed);
}
