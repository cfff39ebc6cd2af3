/* PNG's filters, undone: rows of one filter byte and `width` bytes, pixels of `step` bytes. */

#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define PIXEL_AT_ONCE
#include <immintrin.h>
#endif

static inline int pick(int yes, int no, int if_negative) { return no ^ ((no ^ yes) & (if_negative >> 31)); }

/* What PNG calls Paeth: of the three, the one nearest to left + up - corner; of equally near ones the first.

   That sum is nearer to the lower of left and up than to corner where low + 2 * high < 3 * corner, and
   nearer to the higher where 2 * low + high > 3 * corner. No branches: pixels are no pattern to predict. */
static inline int paeth(int left, int up, int corner) {
    int low = pick(left, up, left - up), high = left ^ up ^ low, rest = 3 * corner - left - up;
    return pick(pick(corner, low, rest - high), high, low - rest);
}

static inline int sub(int left, int up, int corner) { return left; }
static inline int average(int left, int up, int corner) { return (left + up) / 2; }

/* One row. What stands left and above that stays in registers, because `step` is known where this is called. */
#define UNDO(NAME, PREDICT)                                                                                      \
    static inline void NAME(const uint8_t *restrict row, const uint8_t *restrict up, uint8_t *restrict out,      \
                            size_t width, size_t step) {                                                         \
        int left[CHANNELS] = {0}, corner[CHANNELS] = {0};                                                        \
        for (size_t i = 0; i < width; i += step)                                                                 \
            for (size_t c = 0; c < step; c++) {                                                                  \
                left[c] = (row[i + c] + PREDICT(left[c], up[i + c], corner[c])) & 255;                           \
                corner[c] = up[i + c];                                                                           \
                out[i + c] = (uint8_t)left[c];                                                                   \
            }                                                                                                    \
    }

UNDO(undo_sub, sub)
UNDO(undo_average, average)
UNDO(undo_paeth, paeth)

#define UNDO_BY_STEP(NAME) (step == 1 ? NAME(row, up, out, width, 1) : NAME(row, up, out, width, CHANNELS))

#ifdef PIXEL_AT_ONCE
#define AVX2 __attribute__((target("avx2")))

/* The channels of a pixel, side by side. */
AVX2 static inline __m128i pixel_at(const uint8_t *from, size_t nbytes) {
    int packed = 0;
    memcpy(&packed, from, nbytes);
    return _mm_cvtepu8_epi16(_mm_cvtsi32_si128(packed));
}

AVX2 static inline void put_pixel(uint8_t *to, __m128i pixel, size_t nbytes) {
    int packed = _mm_cvtsi128_si32(_mm_packus_epi16(pixel, pixel));
    memcpy(to, &packed, nbytes);
}

AVX2 static inline __m128i sub_pixel(__m128i pixel, __m128i left, __m128i up, __m128i corner) {
    return _mm_add_epi8(pixel, left);
}

/* Every pixel waits for the one left of it, so what counts is how many steps are between them: whatever does not need
   `left` is done beside these, and the sums for each of the three that may be the nearest are. */
AVX2 static inline __m128i paeth_pixel(__m128i pixel, __m128i left, __m128i up, __m128i corner) {
    __m128i rise = _mm_sub_epi16(up, corner), beyond = _mm_sub_epi16(rise, corner);
    __m128i far_up = _mm_abs_epi16(_mm_sub_epi16(left, corner));
    __m128i far_corner = _mm_abs_epi16(_mm_add_epi16(left, beyond));
    __m128i other = _mm_blendv_epi8(_mm_add_epi8(pixel, up), _mm_add_epi8(pixel, corner),
                                    _mm_cmpgt_epi16(far_up, far_corner));
    __m128i other_is_nearer = _mm_cmpgt_epi16(_mm_abs_epi16(rise), _mm_min_epi16(far_up, far_corner));
    return _mm_blendv_epi8(_mm_add_epi8(pixel, left), other, other_is_nearer);
}

/* `undo_sub` and `undo_paeth` for colour. All but the last pixel come and go with the byte behind them: the next one
   mends it. */
#define AT_ONCE(NAME, PIXEL)                                                                                        \
    AVX2 static void NAME(const uint8_t *row, const uint8_t *up, uint8_t *out, size_t width) {                      \
        __m128i left = _mm_setzero_si128(), corner = left, above;                                                   \
        size_t i = 0;                                                                                               \
        for (; i + CHANNELS < width; i += CHANNELS, corner = above) {                                               \
            above = pixel_at(up + i, CHANNELS + 1);                                                                 \
            left = PIXEL(pixel_at(row + i, CHANNELS + 1), left, above, corner);                                     \
            put_pixel(out + i, left, CHANNELS + 1);                                                                 \
        }                                                                                                           \
        put_pixel(out + i, PIXEL(pixel_at(row + i, CHANNELS), left, pixel_at(up + i, CHANNELS), corner), CHANNELS); \
    }

AT_ONCE(undo_sub_at_once, sub_pixel)
AT_ONCE(undo_paeth_at_once, paeth_pixel)
#define UNDO_PIXELS(NAME) \
    (step == CHANNELS && __builtin_cpu_supports("avx2") ? NAME##_at_once(row, up, out, width) : UNDO_BY_STEP(NAME))
#else
#define UNDO_PIXELS UNDO_BY_STEP
#endif

static void undo_up(const uint8_t *restrict row, const uint8_t *restrict up, uint8_t *restrict out, size_t width) {
    for (size_t i = 0; i < width; i++) out[i] = row[i] + up[i];
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
                UNDO_PIXELS(undo_sub);
                break;
            case 2:
                undo_up(row, up, out, width);
                break;
            case 3:
                UNDO_BY_STEP(undo_average);
                break;
            case 4:
                UNDO_PIXELS(undo_paeth);
                break;
            default:
                bad = -1;
        }
    }
    free(zeros);
    return bad;
}

PyObject *py_unfilter(PyObject *module, PyObject *args) {
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
