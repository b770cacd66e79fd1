"""What a run of generate keeps and tells: checkpoints, progress, how many images are enough."""
