"""Geometry and clinical language of the left ventricle; numpy and scipy only."""
