"""`acmix selftest`: what the documentation claims of a device, checked on one and written down."""
