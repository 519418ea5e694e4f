"""The trained database that most tests start from, shipped as a dump (`make.py` makes it anew)."""
