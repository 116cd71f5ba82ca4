"""Packages in object storage: read through fsspec, checked, and kept in a local cache that commands work on."""
