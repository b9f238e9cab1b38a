"""Launches: flags and files around one call of the library. No mathematics."""
