"""A finished run as files for other software."""
