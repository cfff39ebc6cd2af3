"""`python -m filmroll`, which is how a run starts its processes."""

from filmroll.cli import main

main()
