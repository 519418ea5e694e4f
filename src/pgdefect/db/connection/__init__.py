"""One pool of connections a process, and what goes over them.

Errors of the driver become `pgdefect.core.errors`; binary COPY; reading in blocks; lock waits.
Every other room of `db` but `server` may use it.
"""
