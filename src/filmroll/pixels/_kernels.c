/* The loops of filmroll.pixels that numpy cannot fuse: resizing, cutting, and undoing PNG's filters.

   Each gives what the Python beside it gives, to the last bit; each runs without the interpreter's lock.
   Callers have checked every size: a wrong one here is a ValueError, never a read out of bounds.

   H, W = height and width of a picture; every pixel has CHANNELS bytes. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define CHANNELS 3
#define LEVELS 256

#ifndef M_PI
#define M_PI 3.14159265358979323846
#endif

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EVERY_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EVERY_CPU
#endif

/* ---- resizing, as Pillow 13 does it: weights of 22 bits, an 8 bit picture between the passes ---- */

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
    return sin(x) / x * (0.54 + 0.46 * cos(x));
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

static int get(PyObject *object, Py_buffer *view, int flags, Py_ssize_t nbytes) {
    if (PyObject_GetBuffer(object, view, flags)) return -1;
    if (view->len == nbytes) return 0;
    PyBuffer_Release(view);
    PyErr_Format(PyExc_ValueError, "a buffer has %zd bytes, expected are %zd", view->len, nbytes);
    return -1;
}

static PyObject *finish(int failed) {
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_resize(PyObject *module, PyObject *args) {
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

/* ---- cutting: patches in the order and layout of filmroll.pixels.patches ---- */

typedef struct {
    int bands, columns, merge, tall, wide, temporal, channels_last;
} Shape;

#define CUT(NAME, VALUE)                                                                                     \
    static void NAME(const uint8_t *in, const VALUE *table, VALUE *out, Shape shape) {                       \
        size_t row_bytes = (size_t)shape.columns * shape.merge * shape.wide * CHANNELS;                      \
        size_t plane = (size_t)shape.tall * shape.wide;                                                      \
        for (int band = 0; band < shape.bands; band++)                                                       \
            for (int column = 0; column < shape.columns; column++)                                           \
                for (int down = 0; down < shape.merge; down++)                                               \
                    for (int right = 0; right < shape.merge; right++) {                                      \
                        const uint8_t *patch = in +                                                          \
                            ((size_t)band * shape.merge + down) * shape.tall * row_bytes +                   \
                            ((size_t)column * shape.merge + right) * shape.wide * CHANNELS;                  \
                        if (shape.channels_last) {                                                           \
                            for (int y = 0; y < shape.tall; y++)                                             \
                                for (int x = 0; x < shape.wide * CHANNELS; x += CHANNELS) {                  \
                                    const uint8_t *pixel = patch + y * row_bytes + x;                        \
                                    *out++ = table[pixel[0]];                                                \
                                    *out++ = table[LEVELS + pixel[1]];                                       \
                                    *out++ = table[2 * LEVELS + pixel[2]];                                   \
                                }                                                                            \
                            continue;                                                                        \
                        }                                                                                    \
                        VALUE *red = out, *green = out + plane * shape.temporal,                             \
                              *blue = out + 2 * plane * shape.temporal;                                      \
                        for (int y = 0; y < shape.tall; y++) {                                               \
                            const uint8_t *pixel = patch + y * row_bytes;                                    \
                            for (int x = 0; x < shape.wide; x++, pixel += CHANNELS) {                        \
                                *red++ = table[pixel[0]];                                                    \
                                *green++ = table[LEVELS + pixel[1]];                                         \
                                *blue++ = table[2 * LEVELS + pixel[2]];                                      \
                            }                                                                                \
                        }                                                                                    \
                        for (int channel = 0; channel < CHANNELS; channel++)                                 \
                            for (int copy = 1; copy < shape.temporal; copy++)                                \
                                memcpy(out + (channel * shape.temporal + copy) * plane,                      \
                                       out + channel * shape.temporal * plane, plane * sizeof(VALUE));       \
                        out += CHANNELS * shape.temporal * plane;                                            \
                    }                                                                                        \
    }

CUT(cut_8, uint8_t)
CUT(cut_16, uint16_t)
CUT(cut_32, uint32_t)

static PyObject *py_cut(PyObject *module, PyObject *args) {
    PyObject *from, *values, *to;
    Py_buffer in, table, out;
    Shape shape;
    Py_ssize_t pixels;
    int size;
    if (!PyArg_ParseTuple(args, "OOO(iiiiiii)i", &from, &values, &to, &shape.bands, &shape.columns, &shape.merge,
                          &shape.tall, &shape.wide, &shape.temporal, &shape.channels_last, &size))
        return NULL;
    if (shape.bands < 1 || shape.columns < 1 || shape.merge < 1 || shape.tall < 1 || shape.wide < 1 ||
        shape.temporal < 1 || (shape.channels_last && shape.temporal > 1) || (size != 1 && size != 2 && size != 4)) {
        PyErr_SetString(PyExc_ValueError, "this is no cut");
        return NULL;
    }
    pixels = (Py_ssize_t)shape.bands * shape.columns * shape.merge * shape.merge * shape.tall * shape.wide;
    if (get(from, &in, PyBUF_SIMPLE, pixels * CHANNELS)) return NULL;
    if (get(values, &table, PyBUF_SIMPLE, (Py_ssize_t)CHANNELS * LEVELS * size)) {
        PyBuffer_Release(&in);
        return NULL;
    }
    if (get(to, &out, PyBUF_WRITABLE, pixels * CHANNELS * shape.temporal * size)) {
        PyBuffer_Release(&in);
        PyBuffer_Release(&table);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    if (size == 1)
        cut_8(in.buf, table.buf, out.buf, shape);
    else if (size == 2)
        cut_16(in.buf, table.buf, out.buf, shape);
    else
        cut_32(in.buf, table.buf, out.buf, shape);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&in);
    PyBuffer_Release(&table);
    PyBuffer_Release(&out);
    Py_RETURN_NONE;
}

/* ---- PNG's filters, undone: rows of one filter byte and `width` bytes, pixels of `step` bytes ---- */

static inline uint8_t paeth(int left, int up, int corner) {
    int to_left = abs(up - corner), to_up = abs(left - corner), to_corner = abs(left + up - 2 * corner);
    return (uint8_t)(to_left <= to_up && to_left <= to_corner ? left : to_up <= to_corner ? up : corner);
}

/* 0, or -1 where a row names a filter that PNG does not have. */
static int unfilter(const uint8_t *in, uint8_t *out, int height, size_t width, size_t step) {
    uint8_t *zeros = calloc(width ? width : 1, 1);
    const uint8_t *up = zeros;
    int bad = 0;
    if (!zeros) return -2;
    for (int y = 0; y < height && !bad; y++, in += width + 1, up = out, out += width) {
        const uint8_t *row = in + 1;
        switch (in[0]) {
            case 0:
                memcpy(out, row, width);
                break;
            case 1:
                memcpy(out, row, step);
                for (size_t i = step; i < width; i++) out[i] = row[i] + out[i - step];
                break;
            case 2:
                for (size_t i = 0; i < width; i++) out[i] = row[i] + up[i];
                break;
            case 3:
                for (size_t i = 0; i < step; i++) out[i] = row[i] + up[i] / 2;
                for (size_t i = step; i < width; i++) out[i] = row[i] + (uint8_t)((out[i - step] + up[i]) / 2);
                break;
            case 4:
                for (size_t i = 0; i < step; i++) out[i] = row[i] + up[i];
                for (size_t i = step; i < width; i++) out[i] = row[i] + paeth(out[i - step], up[i], up[i - step]);
                break;
            default:
                bad = -1;
        }
    }
    free(zeros);
    return bad;
}

static PyObject *py_unfilter(PyObject *module, PyObject *args) {
    PyObject *from, *to;
    Py_buffer in, out;
    int height, width, step, bad;
    if (!PyArg_ParseTuple(args, "OOiii", &from, &to, &height, &width, &step)) return NULL;
    if (height < 1 || width < 1 || (step != 1 && step != CHANNELS)) {
        PyErr_SetString(PyExc_ValueError, "sides begin at 1, pixels have 1 or 3 bytes");
        return NULL;
    }
    if (get(from, &in, PyBUF_SIMPLE, (Py_ssize_t)height * ((Py_ssize_t)width * step + 1))) return NULL;
    if (get(to, &out, PyBUF_WRITABLE, (Py_ssize_t)height * width * step)) {
        PyBuffer_Release(&in);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    bad = unfilter(in.buf, out.buf, height, (size_t)width * step, step);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&in);
    PyBuffer_Release(&out);
    if (bad == -2) return PyErr_NoMemory();
    if (bad) {
        PyErr_SetString(PyExc_ValueError, "a row has a filter that PNG does not know");
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef METHODS[] = {
    {"resize", py_resize, METH_VARARGS, "resize(rgb, height, width, out, new_height, new_width, filter)"},
    {"cut", py_cut, METH_VARARGS,
     "cut(rgb, table, out, (bands, columns, merge, tall, wide, temporal, channels_last), bytes of a value)"},
    {"unfilter", py_unfilter, METH_VARARGS, "unfilter(rows, out, height, width, bytes of a pixel)"},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "filmroll.pixels._kernels", NULL, 0, METHODS};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModuleDef_Init(&MODULE); }
