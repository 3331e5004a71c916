"""The benchmark: blockops against what PyTorch offers. `python -m bench --help` says how to run it.

Read in this order: providers.py and models.py (what is compared), contests.py (on which cases),
truth.py (what is right), measure.py (checks and times), report.py, aims.py, compare.py,
__main__.py.
"""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's notes, before torch is loaded
