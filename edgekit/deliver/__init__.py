"""Packages on their way to devices: as one file, and over ssh."""
