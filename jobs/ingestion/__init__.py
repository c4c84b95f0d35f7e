"""Photos to image sets: what the command `jobs/ingest.py` is made of."""
