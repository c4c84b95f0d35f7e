"""The report of a run: `site` writes it; each other room prepares one part from contract files."""
