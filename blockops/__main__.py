"""`python -m blockops` prints what this installation can do."""

from ._info import as_text, info

print(as_text(info()))
