"""The command line of latentcot-export: one file per verb, no logic; the library does the work."""
