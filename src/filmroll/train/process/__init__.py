"""The trainer as a process, or as several: calls come in (`service`), all ranks follow (`team`), progress is kept
(`checkpoint`).
"""
