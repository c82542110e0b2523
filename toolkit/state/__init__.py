"""Readers of a device's state: one kind of device a file. What a device says is untrusted text."""
