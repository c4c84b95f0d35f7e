"""Comparisons of embedders: the plan, its trainings as Ray tasks, the table."""
