"""What training would use on this machine and why, and what prevents it or makes it slow."""
