"""Shared library of the PET/CT lesion-segmentation bundle: volumes, images, containers and the command line."""

__version__ = "0.1.0"
