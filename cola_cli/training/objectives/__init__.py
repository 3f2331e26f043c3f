"""What is trained: the losses of each model family."""
