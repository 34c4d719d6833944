"""From videos and annotations to batches: readers, prepared shards, the DALI pipeline and the loader."""
