/* Cutting: patches in the order and layout of filmroll.pixels.patches. */

#include "kernels.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define BLOCK (1 << 14) /* bytes that stay in the nearest cache while they are made and put */
#define PARTED (1 << 18) /* bytes that stay in the second cache */
#define LARGE (1 << 20) /* bytes of one channel that no cache keeps for whoever reads them next */

typedef struct {
    int bands, columns, merge, tall, wide, temporal, channels_last;
} Shape;

/* Rows of pixels to the values of their levels, channel by channel, or pixel by pixel with channels last. */
#define LOOK_UP(NAME, VALUE)                                                                                     \
    static void NAME(const uint8_t *in, size_t row_bytes, size_t rows, size_t wide, const void *table, void *to, \
                     int channels_last) {                                                                        \
        const VALUE *reds = table, *greens = reds + LEVELS, *blues = greens + LEVELS;                            \
        size_t stride = channels_last ? CHANNELS : 1, plane = channels_last ? 1 : rows * wide;                   \
        VALUE *red = to, *green = red + plane, *blue = green + plane;                                            \
        for (size_t y = 0; y < rows; y++, in += row_bytes)                                                       \
            for (size_t x = 0; x < wide * CHANNELS; x += CHANNELS) {                                             \
                *red = reds[in[x]], *green = greens[in[x + 1]], *blue = blues[in[x + 2]];                        \
                red += stride, green += stride, blue += stride;                                                  \
            }                                                                                                    \
    }

LOOK_UP(look_up_16, uint16_t)
LOOK_UP(look_up_32, uint32_t)

/* A copy that goes past the caches, where `large` says that all copies together would only sweep them. */
static inline void put(uint8_t *to, const uint8_t *from, size_t nbytes, int large) {
#ifdef __SSE2__
    if (large && !(((uintptr_t)to | nbytes) & 15)) {
        for (size_t i = 0; i < nbytes; i += 16)
            _mm_stream_si128((__m128i *)(to + i), _mm_loadu_si128((const __m128i *)(from + i)));
        return;
    }
#endif
    memcpy(to, from, nbytes);
}

static inline void finish_puts(void) {
#ifdef __SSE2__
    _mm_sfence();
#endif
}

/* Values of `size` bytes, made a block of rows of a patch at a time where they are near, then put. */
static int cut_values(const uint8_t *in, const void *table, uint8_t *out, Shape shape, size_t size) {
    void (*look_up)(const uint8_t *, size_t, size_t, size_t, const void *, void *, int) =
        size == 2 ? look_up_16 : look_up_32;
    size_t wide = shape.wide, tall = shape.tall, plane = tall * wide * size, line = wide * size;
    size_t row_bytes = (size_t)shape.columns * shape.merge * wide * CHANNELS;
    size_t block = BLOCK / (line * CHANNELS) < 1 ? 1 : BLOCK / (line * CHANNELS);
    int large = (size_t)shape.bands * shape.columns * shape.merge * shape.merge * plane > LARGE;
    uint8_t *values = malloc(block * line * CHANNELS);
    if (!values) return -1;
    for (int band = 0; band < shape.bands; band++)
        for (int column = 0; column < shape.columns; column++)
            for (int patch = 0; patch < shape.merge * shape.merge; patch++) {
                size_t down = (size_t)band * shape.merge + patch / shape.merge;
                size_t right = (size_t)column * shape.merge + patch % shape.merge;
                const uint8_t *from = in + down * tall * row_bytes + right * wide * CHANNELS;
                for (size_t y = 0; y < tall; y += block, from += block * row_bytes) {
                    size_t rows = tall - y < block ? tall - y : block;
                    look_up(from, row_bytes, rows, wide, table, values, shape.channels_last);
                    if (shape.channels_last)
                        put(out + y * line * CHANNELS, values, rows * line * CHANNELS, large);
                    else
                        for (int copy = 0; copy < CHANNELS * shape.temporal; copy++)
                            put(out + copy * plane + y * line, values + copy / shape.temporal * rows * line,
                                rows * line, large);
                }
                out += CHANNELS * shape.temporal * plane;
            }
    finish_puts();
    free(values);
    return 0;
}

/* A row of pixels to a row of each channel, one after another. */
FOR_EVERY_CPU static void part_channels(const uint8_t *restrict row, uint8_t *restrict parted, size_t width) {
    uint8_t *restrict red = parted, *restrict green = parted + width, *restrict blue = parted + 2 * width;
    for (size_t x = 0; x < width; x++) {
        red[x] = row[x * CHANNELS];
        green[x] = row[x * CHANNELS + 1];
        blue[x] = row[x * CHANNELS + 2];
    }
}

/* What is too short for memcpy to be worth its call: 16 or 8 bytes at a time, the last ones overlapping. */
static inline void copy_short(uint8_t *restrict to, const uint8_t *restrict from, size_t nbytes) {
    if (nbytes >= 16) {
        for (size_t i = 0; i + 16 < nbytes; i += 16) memcpy(to + i, from + i, 16);
        memcpy(to + nbytes - 16, from + nbytes - 16, 16);
    } else if (nbytes >= 8) {
        memcpy(to, from, 8);
        memcpy(to + nbytes - 8, from + nbytes - 8, 8);
    } else {
        for (size_t i = 0; i < nbytes; i++) to[i] = from[i];
    }
}

/* `rows` of one channel of a patch, `stride` apart, to rows side by side. */
static inline void gather(const uint8_t *from, size_t stride, uint8_t *to, size_t rows, size_t row) {
    for (size_t y = 0; y < rows; y++) copy_short(to + y * row, from + y * stride, row);
}

/* Twice as fast where the compiler knows how wide a patch is: as wide as those of most towers. */
static void gather_levels(const uint8_t *from, size_t stride, uint8_t *to, size_t rows, size_t row) {
    if (row == 14)
        gather(from, stride, to, rows, 14);
    else if (row == 16)
        gather(from, stride, to, rows, 16);
    else
        gather(from, stride, to, rows, row);
}

/* The levels as they are: a block of rows is parted where it is near, then each patch of it written at one go. */
static int cut_levels(const uint8_t *in, uint8_t *out, Shape shape) {
    size_t wide = shape.wide, tall = shape.tall, plane = tall * wide, patch = CHANNELS * shape.temporal * plane;
    size_t across = (size_t)shape.columns * shape.merge, width = across * wide, row = width * CHANNELS;
    size_t block = PARTED / row < 1 ? 1 : PARTED / row < tall ? PARTED / row : tall;
    size_t merged = (size_t)shape.merge * shape.merge;
    uint8_t *parted = malloc(block * row);
    if (!parted) return -1;
    for (size_t down = 0; down < (size_t)shape.bands * shape.merge; down++)
        for (size_t y = 0, rows; y < tall; y += rows, in += rows * row) {
            rows = tall - y < block ? tall - y : block;
            for (size_t line = 0; line < rows && !shape.channels_last; line++)
                part_channels(in + line * row, parted + line * row, width);
            for (size_t right = 0; right < across; right++) {
                size_t place = (down / shape.merge * shape.columns + right / shape.merge) * merged +
                               down % shape.merge * shape.merge + right % shape.merge;
                uint8_t *to = out + place * patch;
                if (shape.channels_last)
                    gather_levels(in + right * wide * CHANNELS, row, to + y * wide * CHANNELS, rows, wide * CHANNELS);
                else
                    for (int copy = 0; copy < CHANNELS * shape.temporal; copy++)
                        gather_levels(parted + copy / shape.temporal * width + right * wide, row,
                                      to + copy * plane + y * wide, rows, wide);
            }
        }
    free(parted);
    return 0;
}

/* Values of `size` bytes; levels where `values` is None. */
PyObject *py_cut(PyObject *module, PyObject *args) {
    PyObject *from, *values, *to;
    Py_buffer in, table = {0}, out;
    Shape shape;
    Py_ssize_t pixels;
    int size, failed = 0;
    if (!PyArg_ParseTuple(args, "OOO(iiiiiii)i", &from, &values, &to, &shape.bands, &shape.columns, &shape.merge,
                          &shape.tall, &shape.wide, &shape.temporal, &shape.channels_last, &size))
        return NULL;
    if (shape.bands < 1 || shape.columns < 1 || shape.merge < 1 || shape.tall < 1 || shape.wide < 1 ||
        shape.temporal < 1 || (shape.channels_last && shape.temporal > 1) ||
        (values == Py_None ? size != 1 : size != 2 && size != 4)) {
        PyErr_SetString(PyExc_ValueError, "this is no cut");
        return NULL;
    }
    pixels = (Py_ssize_t)shape.bands * shape.columns * shape.merge * shape.merge * shape.tall * shape.wide;
    if (get(from, &in, PyBUF_SIMPLE, pixels * CHANNELS)) return NULL;
    if (size > 1 && get(values, &table, PyBUF_SIMPLE, (Py_ssize_t)CHANNELS * LEVELS * size)) {
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
        failed = cut_levels(in.buf, out.buf, shape);
    else
        failed = cut_values(in.buf, table.buf, out.buf, shape, size);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&in);
    PyBuffer_Release(&table);
    PyBuffer_Release(&out);
    return finish(failed);
}
