"""Whole runs: how they are configured (`config`), where they are written down (`directory`, `record`), who does them.

From the ground up: `processes` are started, watched and ended; `members` are what they do; in `cluster` they are
started apart, on any machines; a `crew` is all of them as one speaks to them; `courses` are the loops that teach and
test a policy with them. `serving` starts engines without a run.
"""
