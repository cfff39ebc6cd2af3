"""From references to model inputs: verified bytes, decoded pictures, tensors, and a receipt for each.

The readers' wing: the only place where a reference becomes pixels."""
