"""Stillhouse distils an expensive teacher model into a small student, and proves what it kept."""

__version__ = "0.1.0"
