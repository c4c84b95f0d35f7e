"""The engine: the folder of a run, its settings and marks, and the workers that fill it."""
