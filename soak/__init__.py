"""Faults on purpose: what `make soak` injects, and the suite a little of.

Commands are killed, servers killed, connections cut, disks filled, time and memory taken away, at
seeded random moments. Then the same command runs again, and the database and the files must hold
what one undisturbed run leaves. `state` says what they hold and how two of them differ, `lane` is
a server of its own with a place for commands to run in, `cases` are the commands, `faults` what is
done to them, `run` does it and counts.
"""
