"""Measures the pipeline, whole and in parts: ``margin-clearing bench``. What runs ends in a check, or has no figure."""
