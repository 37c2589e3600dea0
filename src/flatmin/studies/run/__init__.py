"""Doing the work: cells are taken up, trained and kept until none is left.

`worker.work` is the loop of one worker, and knows nothing of what a cell computes;
`trainer.Trainer` is what trains a cell. `processes` starts workers side by side on one machine, and
`torchrun` lets the ranks of one launch train each cell together.
"""
