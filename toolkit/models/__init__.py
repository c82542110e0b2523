"""One family of networks a file; each defines MODELS, name to ModelSpec, with literal names."""
