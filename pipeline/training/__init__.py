"""The training loop around the network: steps, batches, checkpoints, processes."""
