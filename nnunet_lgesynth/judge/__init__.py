"""Who decides: the nnU-Net segmenter that scores samples, and the checks that accept them."""
