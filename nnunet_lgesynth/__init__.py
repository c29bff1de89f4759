"""Synthetic myocardial scars for nnU-Net: paint them, check them, train with them, measure the gain."""

__version__ = "0.1.0"
