"""The benchmark: blockops against what PyTorch offers. `python -m bench --help` says how to run it.

Read in this order: providers.py and models.py (what is compared), contests.py (on which cases),
curves.py (and on which sizes), truth.py (what is right), floors.py (what it costs at least),
clocks.py and measure.py (checks and times), ranking.py (what follows), report.py, plots.py,
aims.py, compare.py, tables.py (what becomes of it), options.py, terminal.py, __main__.py.
"""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's notes, before torch is loaded
