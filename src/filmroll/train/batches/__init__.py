"""From trajectories to micro-batches of references: which sample goes where, and to which rank. No pixels yet.

`samples` makes them of branches, `overlong` refuses or cuts what is too long, `packing` fills micro-batches (`bins`)
and `plan` is a step's: packed, then dealt out.
"""
