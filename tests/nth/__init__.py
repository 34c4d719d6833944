"""Lets the n-th operation on a disk fail, for every n until none is left, and looks at what comes of it.

disk.py     counts a process's operations on files below a folder, and lets one of them fail
stages.py   what is tried: prepare, also in parts and to a URL, what training writes, the report, shards, the cache
trials.py   one failure, and its outcome: equal, told, or lost
"""
