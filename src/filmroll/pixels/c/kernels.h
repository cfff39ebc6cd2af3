/* What the loops of filmroll.pixels share: those that numpy cannot fuse.

   Each gives what the Python beside it gives, to the last bit; each runs without the interpreter's lock.
   Callers have checked every size: a wrong one here is a ValueError, never a read out of bounds.

   H, W = height and width of a picture; every pixel has CHANNELS bytes. */

#ifndef FILMROLL_KERNELS
#define FILMROLL_KERNELS

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define CHANNELS 3
#define LEVELS 256

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EVERY_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EVERY_CPU
#endif

PyObject *py_resize(PyObject *module, PyObject *args);
PyObject *py_cut(PyObject *module, PyObject *args);
PyObject *py_unfilter(PyObject *module, PyObject *args);

/* A buffer of exactly so many bytes, or -1 with the exception set. */
static inline int get(PyObject *object, Py_buffer *view, int flags, Py_ssize_t nbytes) {
    if (PyObject_GetBuffer(object, view, flags)) return -1;
    if (view->len == nbytes) return 0;
    PyBuffer_Release(view);
    PyErr_Format(PyExc_ValueError, "a buffer has %zd bytes, expected are %zd", view->len, nbytes);
    return -1;
}

static inline PyObject *finish(int failed) {
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

#endif
