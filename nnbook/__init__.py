"""The book around nnlib: it runs chapters, keeps what they measured, and renders their report.

It knows no algorithm. Chapters import `record` and `holds` from here.
"""

from nnbook.results import holds, record

__all__ = ["holds", "record"]
