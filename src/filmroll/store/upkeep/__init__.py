"""What is referred to, and keeping a store clean and whole without ever losing that.

Each command of `filmroll store` is one file: gc, sweep, verify, stats, archive.
"""
