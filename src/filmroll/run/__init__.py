"""A whole run: its configuration, its folder, its processes, and the loop that drives them."""
