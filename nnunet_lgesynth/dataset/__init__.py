"""What nnU-Net gives us: label roles of a dataset and its preprocessed cases."""
