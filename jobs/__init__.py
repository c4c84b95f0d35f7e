"""The scripts people run, and the only code that knows Ray, the folder of a run and the command line."""

__version__ = "0.2.0"
