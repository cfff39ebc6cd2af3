"""The store under kills, crashes and faults, tried until it would have given in.

calls.py lets a test answer the system calls of a thread. test_faults.py fails each of them in turn
on a real file system. disk.py answers them with a file system in memory that forgets at a crash
what was not synced; schedule.py has several processes use it at once, test_crashes.py ends them
after every call. writers.py runs real processes and kills them for test_kills.py.
"""
