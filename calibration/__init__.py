"""Sample sources, preprocessing of photos, recipes."""
