"""Who paints: conditions in, drafts out."""
