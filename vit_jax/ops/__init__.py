"""Functions of arrays: no parameters, no state, no I/O; random keys are arguments."""
