"""Offline inference over a folder of files: resumable, streamed, on one machine or a Ray cluster."""
