"""The command line. A command parses, calls one use case, prints."""
