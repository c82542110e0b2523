"""The library: what models, recipes, targets and artifacts are, and the stages between them."""

import os

# Before torch loads, here and in the children. Threads that spin while they wait steal the processor from the
# converters beside us (seen: a hundredfold).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
