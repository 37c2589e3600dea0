"""What several processes do: scripts that `test_distributed.py` launches by torchrun."""
