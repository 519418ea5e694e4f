"""Known advisories on the pinned dependencies; `make audit`."""
