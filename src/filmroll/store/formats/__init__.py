"""One walker a format: what the bytes say about a picture, and whether they are all there, without decoding it."""
