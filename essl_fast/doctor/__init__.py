"""What training would use on this machine and why, and what stands in its way."""
