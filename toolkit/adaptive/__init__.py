"""Adaptive models: networks in stages, host steps between them, and exits."""
