"""The search for precision per fusion unit, under a limit on the accuracy that it may cost and on time."""
