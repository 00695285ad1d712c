"""The book around nnlib: it runs chapters, keeps what they measured, and renders their report; it knows no algorithm.

Chapters import `record` and `holds` from here.
"""

from nnbook.results import holds as holds
from nnbook.results import record as record
