"""From trajectories to policy updates.

The readers' wing. Samples are packed by reference (`batches`), pixels are made where a forward needs them
(`loading`), a step updates the policy (`learning`), and a process does what it is told (`process`). `step` is what
they all speak of: a configuration, a step's work, and its report.
"""
