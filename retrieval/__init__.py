"""Garment crops to unit vectors, exact search over them, and the accuracy of the benchmark."""
