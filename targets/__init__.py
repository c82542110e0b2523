"""One file format a file; each defines TARGET."""
