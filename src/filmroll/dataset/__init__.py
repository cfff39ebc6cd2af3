"""Conversations that somebody else has written, for supervised training: rows of a file or a data set become messages
with images, messages become trajectories of what is to be learnt.

Stands on render and rollout; `run/courses/sft.py` has them learnt.
"""
