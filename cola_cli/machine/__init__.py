"""What the machine offers: threads, processes, interruptions."""
