"""What training and sampling cost, in closed form: parameters, operations, memory. Needs no torch."""
