"""What a checkpoint's dict begins with."""

FORMAT = "essl_fast checkpoint"
VERSION = 2  # 1 had no checksum and no count of steps that were not finite
