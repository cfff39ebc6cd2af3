"""From trajectories to policy updates: samples, packing, forward, loss, trainer.

The readers' wing: samples carry references; pixels are built where the forward needs them."""
