"""Operators of my own."""
