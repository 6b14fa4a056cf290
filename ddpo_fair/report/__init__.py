"""The report of a run: read, summarised, drawn, written as one HTML page."""
