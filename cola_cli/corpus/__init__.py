"""Text in, packed sequences out, and the reader that training uses."""
