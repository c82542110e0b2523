"""Exact graph rules, one a file; each defines REWRITE."""
