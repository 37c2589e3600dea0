"""What several processes do: scripts that `engine/test_distributed.py` launches by torchrun."""
