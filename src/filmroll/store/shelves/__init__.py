"""Where bytes lie under keys: a folder, a bucket. A new kind of place is one more Shelf."""
