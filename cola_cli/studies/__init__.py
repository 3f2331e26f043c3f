"""Studies: many models along compute or along one setting, planned, run and compared."""
