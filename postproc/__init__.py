"""Boxes, features and rankings as plain arrays: NumPy in, NumPy out. Nothing here knows of files, models or Ray."""
