"""The papers' claims as measured rows."""
