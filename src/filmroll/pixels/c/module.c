/* filmroll.pixels._kernels, the module. */

#include "kernels.h"

static PyMethodDef METHODS[] = {
    {"resize", py_resize, METH_VARARGS, "resize(rgb, height, width, out, new_height, new_width, filter)"},
    {"cut", py_cut, METH_VARARGS,
     "cut(rgb, table, out, (bands, columns, merge, tall, wide, temporal, channels_last), bytes of a value)"},
    {"unfilter", py_unfilter, METH_VARARGS, "unfilter(rows, out, height, width, bytes of a pixel)"},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "filmroll.pixels._kernels", NULL, 0, METHODS};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModuleDef_Init(&MODULE); }
