"""The released checkpoint's layout, in and out."""
