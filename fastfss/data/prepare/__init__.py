"""Data sets from their official archives: unpacked, masks made, checked.

One module a data set. Each step leaves whole files alone, so that a run that was killed goes on
where it was; only one run at a time may write to a root.
"""

from __future__ import annotations
