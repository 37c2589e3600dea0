"""What several processes do: scripts that `tests/test_distributed.py` launches by torchrun."""
