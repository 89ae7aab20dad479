"""The command line: argument parsing and printing; the work is done elsewhere."""
