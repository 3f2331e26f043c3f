"""Networks on disk: in our artifacts, and in the layout of the released checkpoint."""
