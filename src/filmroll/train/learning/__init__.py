"""From tensors to a policy update: the model, its forward, what is minimized, and the ranks that do it together.

`trainer` does a whole step; everything else here is a part of one.
"""
