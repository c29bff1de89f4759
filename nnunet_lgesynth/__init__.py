"""Synthetic myocardial scars for nnU-Net: paint them, check them, train with them, compare."""

__version__ = "0.1.0"
