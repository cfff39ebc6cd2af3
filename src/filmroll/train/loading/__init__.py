"""From a micro-batch of references to a model's tensors: the trainer's side of materializing.

`loader` goes through it in order, `rows` and `targets` lay its tokens out, `prefetch` makes the next images
meanwhile, `album` knows what to do where one is missing. `processed` packs pixels up for a trainer that has no
access to the store.
"""
