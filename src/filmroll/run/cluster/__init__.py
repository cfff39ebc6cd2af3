"""Processes of a run that are started apart, on any machines that share its folder; and a job of SLURM that does so."""
