"""Training one run: state and step, loop, checkpoints, history."""
